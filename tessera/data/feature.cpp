#include "tessera/data/feature.h"

#include <c10/util/Half.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "tessera/base/error.h"
#include "tessera/data/mapped_file.h"
#include "tessera/data/npy.h"
#include "tessera/data/safetensors.h"
#include "tessera/ops/parallel.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace tessera {
namespace {

void halves_portable(const char* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    uint16_t bits;
    std::memcpy(&bits, from + 2 * i, 2);
    to[i] = c10::detail::fp16_ieee_to_fp32_value(bits);
  }
}

#if defined(__x86_64__)
__attribute__((target("avx,f16c"))) void halves_f16c(const char* from, float* to, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 2 * i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(eight));
  }
  halves_portable(from + 2 * i, to + i, n - i);
}
#endif

using Halves = void (*)(const char*, float*, int64_t);

Halves best_halves() {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
  if (f16c && __builtin_cpu_supports("avx")) return halves_f16c;
#endif
  return halves_portable;
}

/// Exit 3 unless the shape is that of a feature: [rows, width >= 1] of floating-point numbers.
void require_matrix(torch::ScalarType dtype, const std::vector<int64_t>& shape,
                    const std::string& what) {
  if (dtype != torch::kHalf && dtype != torch::kFloat && dtype != torch::kDouble) {
    throw data_error("{}: dtype {}, wanted float16, float32 or float64", what,
                     c10::toString(dtype));
  }
  if (shape.size() != 2) {
    throw data_error("{}: shape [{}], wanted two dimensions [rows, width]", what,
                     fmt::join(shape, ", "));
  }
  if (shape[1] < 1) throw data_error("{}: rows of width 0, wanted at least 1", what);
  if (shape[1] > kMaxFeatureWidth) {
    throw data_error("{}: rows of width {}, wanted at most {}", what, shape[1], kMaxFeatureWidth);
  }
  if (shape[0] > std::numeric_limits<int32_t>::max()) {
    throw data_error("{}: {} rows, wanted fewer than 2^31", what, shape[0]);
  }
}

template <typename Index>
void gather_rows(const Feature& feature, const Index* items, int64_t n, float* to) {
  const int64_t width = feature.width();
  const int64_t n_items = feature.n_items();
  const int32_t* row_of = feature.row_of_item.const_data_ptr<int32_t>();
  const int64_t grain = std::max<int64_t>(1, 16384 / width);
  parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t item = items == nullptr ? i : static_cast<int64_t>(items[i]);
      TORCH_CHECK(item >= 0 && item < n_items, "Feature::gather: no item ", item, " of ", n_items);
      const int32_t row = row_of[item];
      if (row >= 0) {
        feature.rows.read_row(row, to + i * width);
      } else {
        std::fill_n(to + i * width, width, 0.0f);
      }
    }
  });
}

}  // namespace

void floats_of(torch::ScalarType dtype, const char* from, float* to, int64_t n) {
  if (dtype == torch::kFloat) {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
  } else if (dtype == torch::kHalf) {
    static const Halves halves = best_halves();
    halves(from, to, n);
  } else {
    for (int64_t i = 0; i < n; ++i) {
      double value;
      std::memcpy(&value, from + 8 * i, 8);
      to[i] = static_cast<float>(value);
    }
  }
}

MappedArray::MappedArray(torch::Tensor rows) {
  TORCH_CHECK(rows.dim() == 2 && rows.size(1) >= 1, "MappedArray: [rows, width >= 1]");
  auto kept =
      std::make_shared<torch::Tensor>(rows.detach().to(torch::kCPU, torch::kFloat).contiguous());
  data_ = static_cast<const char*>(kept->const_data_ptr());
  n_rows_ = kept->size(0);
  width_ = kept->size(1);
  owner_ = std::move(kept);
}

int64_t MappedArray::item_size() const { return static_cast<int64_t>(c10::elementSize(dtype_)); }

void MappedArray::read_row(int64_t row, float* to) const {
  floats_of(dtype_, data_ + row * width_ * item_size(), to, width_);
}

void MappedArray::forget() const {
  if (!in_file_) return;
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(data_) / page * page;
  const auto end = reinterpret_cast<uintptr_t>(data_) + bytes().size();
  // Only advice: without it the pages stay.
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

MappedArray map_npy(const std::filesystem::path& path) {
  const std::string what = path.string();
  MappedFile file = map_file(path);
  const NpyHeader head = parse_npy(file.bytes, what);
  require_matrix(head.dtype, head.shape, what);
  MappedArray out;
  out.data_ = file.bytes.data() + head.data_offset;
  out.n_rows_ = head.shape[0];
  out.width_ = head.shape[1];
  out.dtype_ = head.dtype;
  out.owner_ = std::move(file.owner);
  out.in_file_ = true;
  return out;
}

MappedArray map_safetensors(const std::filesystem::path& path, const std::string& tensor) {
  const std::string what = path.string();
  MappedFile file = map_file(path);
  const auto entries = parse_safetensors(file.bytes, what);
  const SafetensorsEntry* found = nullptr;
  std::vector<std::string> names;
  for (const auto& [name, entry] : entries) {
    names.push_back(name);
    if (tensor.empty() ? entry.shape.size() != 2 : name != tensor) continue;
    if (found != nullptr) {
      throw data_error("{}: several matrices ({}), wanted one", what,
                       printable(fmt::format("{}", fmt::join(names, ", "))));
    }
    found = &entry;
  }
  if (found == nullptr && tensor.empty()) {
    throw data_error("{}: no matrix [rows, width] among its {} tensors", what, entries.size());
  }
  if (found == nullptr) {
    throw data_error("{}: no tensor '{}'{}", what, printable(tensor), did_you_mean(tensor, names));
  }
  require_matrix(found->dtype, found->shape, what);
  MappedArray out;
  out.data_ = file.bytes.data() + found->begin;
  out.n_rows_ = found->shape[0];
  out.width_ = found->shape[1];
  out.dtype_ = found->dtype;
  out.owner_ = std::move(file.owner);
  out.in_file_ = true;
  return out;
}

torch::Tensor Feature::gather(const torch::Tensor& items) const {
  TORCH_CHECK(items.dim() == 1, "Feature::gather: items [n]");
  const torch::Tensor local = items.cpu().contiguous();
  torch::Tensor out = torch::empty({local.size(0), width()}, torch::kFloat);
  auto* to = out.mutable_data_ptr<float>();
  if (local.scalar_type() == torch::kInt) {
    gather_rows(*this, local.const_data_ptr<int32_t>(), local.size(0), to);
  } else {
    gather_rows(*this, local.const_data_ptr<int64_t>(), local.size(0), to);
  }
  return out.to(items.device());
}

torch::Tensor Feature::all() const {
  torch::Tensor out = torch::empty({n_items(), width()}, torch::kFloat);
  gather_rows<int64_t>(*this, nullptr, n_items(), out.mutable_data_ptr<float>());
  rows.forget();
  return out;
}

torch::Tensor Feature::present() const { return row_of_item.ge(0); }

}  // namespace tessera
