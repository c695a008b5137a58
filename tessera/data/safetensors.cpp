#include "tessera/data/safetensors.h"

#include <algorithm>
#include <cstring>
#include <ostream>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/data/mapped_file.h"

namespace tessera {
namespace {

constexpr size_t kMaxHead = 1 << 20;
constexpr std::string_view kMetadata = "__metadata__";

struct Dtype {
  const char* name;
  torch::ScalarType type;
};
constexpr Dtype kDtypes[] = {{"F16", torch::kHalf}, {"F32", torch::kFloat}, {"F64", torch::kDouble},
                             {"I32", torch::kInt},  {"I64", torch::kLong},  {"U8", torch::kByte},
                             {"BOOL", torch::kBool}};

const char* name_of(torch::ScalarType type) {
  for (const auto& dtype : kDtypes) {
    if (dtype.type == type) return dtype.name;
  }
  TORCH_CHECK(false, "a .safetensors file of ", type, " is not written");
}

bool non_negative(const Json& value, int64_t& out) {
  if (!value.is_number_integer() || value.get<double>() < 0 || value.get<double>() > 9e15) {
    return false;
  }
  out = value.get<int64_t>();
  return true;
}

SafetensorsEntry parse_entry(const Json& value, size_t data_begin, size_t data_size,
                             const std::string& where) {
  if (!value.is_object() || !value.contains("dtype") || !value["dtype"].is_string() ||
      !value.contains("shape") || !value["shape"].is_array() || !value.contains("data_offsets") ||
      !value["data_offsets"].is_array() || value["data_offsets"].size() != 2) {
    throw data_error("{}: wanted dtype, shape and data_offsets", where);
  }
  SafetensorsEntry out;
  const auto& name = value["dtype"].get_ref<const std::string&>();
  const auto* dtype = std::find_if(std::begin(kDtypes), std::end(kDtypes),
                                   [&](const Dtype& d) { return name == d.name; });
  if (dtype == std::end(kDtypes)) {
    throw data_error("{}: dtype '{}', wanted F16, F32, F64, I32, I64, U8 or BOOL", where,
                     printable(name, 20));
  }
  out.dtype = dtype->type;
  int64_t n = static_cast<int64_t>(c10::elementSize(out.dtype)), extent = n;
  bool bad = value["shape"].size() > 32;
  for (const Json& dimension : value["shape"]) {
    int64_t size = 0;
    bad = bad || !non_negative(dimension, size) || __builtin_mul_overflow(n, size, &n) ||
          __builtin_mul_overflow(extent, std::max<int64_t>(size, 1), &extent);
    if (bad) break;
    out.shape.push_back(size);
  }
  if (bad) throw data_error("{}: no usable shape", where);
  int64_t begin = 0, end = 0;
  if (!non_negative(value["data_offsets"][0], begin) ||
      !non_negative(value["data_offsets"][1], end) || begin > end) {
    throw data_error("{}: data_offsets must be two rising numbers", where);
  }
  if (static_cast<size_t>(end) > data_size) {
    throw data_error("{}: ends at byte {} of the data, the file has {}; truncated?", where, end,
                     data_size);
  }
  if (end - begin != n) {
    throw data_error("{}: {} bytes for a shape [{}] of {}, wanted {}", where, end - begin,
                     fmt::join(out.shape, ", "), name, n);
  }
  out.begin = data_begin + static_cast<size_t>(begin);
  out.size = static_cast<size_t>(n);
  return out;
}

}  // namespace

std::map<std::string, SafetensorsEntry> parse_safetensors(std::string_view file,
                                                          const std::string& what) {
  if (file.size() < 8) {
    throw data_error("{}: {} bytes, too few for a .safetensors file", what, file.size());
  }
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<unsigned char>(file[i]);
  if (length > file.size() - 8) {
    throw data_error(
        "{}: its head should take {} bytes, the file has {}; truncated, or no "
        ".safetensors file",
        what, length, file.size());
  }
  if (length > kMaxHead) {
    throw data_error("{}: a head of {} bytes, wanted at most {}", what, length, kMaxHead);
  }
  const Json head = parse_json(file.substr(8, length), what + " (head)");
  if (!head.is_object()) throw data_error("{}: its head is no JSON object", what);
  const size_t data_begin = 8 + length;
  std::map<std::string, SafetensorsEntry> out;
  std::vector<const SafetensorsEntry*> in_order;
  for (const auto& [name, value] : head.items()) {
    if (name == kMetadata) continue;
    const auto where = fmt::format("{}: tensor '{}'", what, printable(name));
    const auto [place, added] =
        out.emplace(name, parse_entry(value, data_begin, file.size() - data_begin, where));
    if (!added) throw data_error("{} is there twice", where);
    in_order.push_back(&place->second);
  }
  std::sort(in_order.begin(), in_order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->begin, a->size) < std::pair(b->begin, b->size);
  });
  size_t end = data_begin;
  for (const auto* entry : in_order) {
    if (entry->begin != end) {
      throw data_error("{}: tensors that {} at byte {}", what,
                       entry->begin < end ? "overlap" : "leave a gap", entry->begin);
    }
    end += entry->size;
  }
  if (end != file.size()) {
    throw data_error("{}: {} bytes after the last tensor", what, file.size() - end);
  }
  return out;
}

void write_safetensors(const std::filesystem::path& path, const TensorMap& tensors,
                       const Json& metadata) {
  std::vector<std::pair<std::string, torch::Tensor>> in_order;
  for (const auto& [name, tensor] : tensors) {
    name_of(tensor.scalar_type());
    in_order.emplace_back(name, tensor.detach().cpu().contiguous());
  }
  std::stable_sort(in_order.begin(), in_order.end(), [](const auto& a, const auto& b) {
    return a.second.element_size() > b.second.element_size();
  });
  Json head = Json::object();
  if (!metadata.empty()) {
    Json& words = head[std::string(kMetadata)] = Json::object();
    for (const auto& [key, value] : metadata.items()) {
      words[key] = value.is_string() ? value.get<std::string>() : value.dump();
    }
  }
  size_t end = 0;
  for (const auto& [name, tensor] : in_order) {
    TORCH_CHECK(name != kMetadata, "a tensor may not be called ", name);
    head[name] = {{"dtype", name_of(tensor.scalar_type())},
                  {"shape", tensor.sizes().vec()},
                  {"data_offsets", {end, end + tensor.nbytes()}}};
    end += tensor.nbytes();
  }
  std::string text = head.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  TORCH_CHECK(text.size() <= kMaxHead, "too many tensors for one file");
  write_file_with(path, [&](std::ostream& out) {
    for (int i = 0; i < 8; ++i) out.put(static_cast<char>(uint64_t{text.size()} >> (8 * i)));
    out << text;
    for (const auto& [name, tensor] : in_order) {
      out.write(static_cast<const char*>(tensor.const_data_ptr()),
                static_cast<std::streamsize>(tensor.nbytes()));
    }
  });
}

TensorMap read_safetensors(const std::filesystem::path& path) {
  const MappedFile file = map_file(path);
  TensorMap out;
  for (const auto& [name, entry] : parse_safetensors(file.bytes, path.string())) {
    torch::Tensor tensor = torch::empty(entry.shape, entry.dtype);
    const std::string_view bytes = file.bytes.substr(entry.begin, entry.size);
    if (entry.dtype == torch::kBool &&
        std::any_of(bytes.begin(), bytes.end(), [](char c) { return c != 0 && c != 1; })) {
      throw data_error("{}: tensor '{}': a BOOL that is neither 0 nor 1", path.string(),
                       printable(name));
    }
    if (!bytes.empty()) std::memcpy(tensor.mutable_data_ptr(), bytes.data(), bytes.size());
    out.emplace(name, std::move(tensor));
  }
  return out;
}

}  // namespace tessera
