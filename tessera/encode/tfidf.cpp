#include "tessera/encode/tfidf.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "tessera/base/stop.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/parallel.h"

namespace tessera {
namespace {

constexpr int64_t kSpare = 16;  // directions beyond the width
constexpr int64_t kIterations = 4;

/// A table of a few non-zeros a row, compressed by row.
struct Sparse {
  int64_t n_columns = 0;
  std::vector<int64_t> offsets = {0};
  std::vector<int32_t> columns;
  std::vector<float> values;
  int64_t n_rows() const { return static_cast<int64_t>(offsets.size()) - 1; }
};

/// X right, [rows, d].
torch::Tensor times(const Sparse& x, const torch::Tensor& right_in) {
  const auto right = right_in.contiguous();
  const int64_t d = right.size(1);
  auto out = torch::zeros({x.n_rows(), d}, torch::kFloat);
  const float* from = right.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  parallel_for(0, x.n_rows(), 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* row = to + r * d;
      for (int64_t e = x.offsets[r]; e < x.offsets[r + 1]; ++e) {
        const float* add = from + x.columns[e] * d;
        for (int64_t i = 0; i < d; ++i) row[i] += x.values[e] * add[i];
      }
    }
  });
  return out;
}

Sparse transposed(const Sparse& x) {
  Sparse out;
  out.n_columns = x.n_rows();
  out.offsets.assign(static_cast<size_t>(x.n_columns) + 1, 0);
  for (const int32_t c : x.columns) ++out.offsets[static_cast<size_t>(c) + 1];
  for (size_t c = 1; c < out.offsets.size(); ++c) out.offsets[c] += out.offsets[c - 1];
  std::vector<int64_t> next(out.offsets.begin(), out.offsets.end() - 1);
  out.columns.resize(x.columns.size());
  out.values.resize(x.values.size());
  for (int64_t r = 0; r < x.n_rows(); ++r) {
    for (int64_t e = x.offsets[r]; e < x.offsets[r + 1]; ++e) {
      const int64_t at = next[x.columns[e]]++;
      out.columns[at] = static_cast<int32_t>(r);
      out.values[at] = x.values[e];
    }
  }
  return out;
}

bool is_letter(unsigned char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c >= 0x80;
}

std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> out;
  std::string word;
  for (const char raw : text + " ") {
    const char c = raw >= 'A' && raw <= 'Z' ? static_cast<char>(raw - 'A' + 'a') : raw;
    if (is_letter(static_cast<unsigned char>(c))) {
      word += c;
    } else if (!word.empty()) {
      out.push_back(std::move(word));
      word.clear();
    }
  }
  return out;
}

/// Counts of the hashed terms of one text.
std::unordered_map<int64_t, int64_t> terms_of(const std::string& text, const TfidfOptions& o) {
  std::unordered_map<int64_t, int64_t> out;
  const auto add = [&](const std::string& term) {
    ++out[static_cast<int64_t>(fnv1a64(term) % static_cast<uint64_t>(o.buckets))];
  };
  const auto words = words_of(text);
  for (size_t i = 0; i < words.size(); ++i) {
    std::string term = "w";
    for (size_t n = 0; n < static_cast<size_t>(o.words) && i + n < words.size(); ++n) {
      term += " " + words[i + n];
      add(term);
    }
    const std::string edged = "_" + words[i] + "_";
    for (int64_t n = o.letters_from; n <= o.letters; ++n) {
      const auto size = static_cast<size_t>(n);
      for (size_t at = 0; at + size <= edged.size(); ++at) add("c " + edged.substr(at, size));
    }
  }
  return out;
}

Sparse weighted_terms(const std::vector<std::string>& texts, const TfidfOptions& options) {
  std::vector<std::vector<std::pair<int64_t, int64_t>>> rows(texts.size());
  parallel_for(0, static_cast<int64_t>(texts.size()), 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const auto terms = terms_of(texts[r], options);
      rows[r].assign(terms.begin(), terms.end());
      std::sort(rows[r].begin(), rows[r].end());
    }
  });
  std::vector<int64_t> n_texts(static_cast<size_t>(options.buckets));
  for (const auto& row : rows) {
    for (const auto& [term, count] : row) ++n_texts[term];
  }
  std::vector<int32_t> column(n_texts.size(), -1);
  Sparse out;
  for (size_t term = 0; term < n_texts.size(); ++term) {
    if (n_texts[term] >= options.min_count) column[term] = static_cast<int32_t>(out.n_columns++);
  }
  const auto n = static_cast<double>(texts.size());
  for (const auto& row : rows) {
    const size_t begin = out.values.size();
    double squares = 0;
    for (const auto& [term, count] : row) {
      if (column[term] < 0) continue;
      const double weight = (1 + std::log(static_cast<double>(count))) *
                            (std::log((1 + n) / (1 + static_cast<double>(n_texts[term]))) + 1);
      out.columns.push_back(column[term]);
      out.values.push_back(static_cast<float>(weight));
      squares += weight * weight;
    }
    const auto scale = static_cast<float>(squares > 0 ? 1 / std::sqrt(squares) : 0);
    for (size_t e = begin; e < out.values.size(); ++e) out.values[e] *= scale;
    out.offsets.push_back(static_cast<int64_t>(out.values.size()));
  }
  return out;
}

torch::Tensor orthonormal(const torch::Tensor& x) {
  return std::get<0>(torch::linalg_qr(x.to(torch::kDouble), "reduced")).to(torch::kFloat);
}

}  // namespace

torch::Tensor tfidf_rows(const std::vector<std::string>& texts, const TfidfOptions& options,
                         const Random& random, const std::function<bool()>& stop_requested) {
  const torch::NoGradGuard no_grad;
  end_if_stopped(stop_requested);
  const Sparse x = weighted_terms(texts, options), xt = transposed(x);
  const int64_t rank = std::min(x.n_rows(), x.n_columns);
  const int64_t width = std::min(options.width, rank);
  if (width == 0) return torch::zeros({x.n_rows(), 0}, torch::kFloat);
  const int64_t columns = std::min(width + kSpare, rank);
  auto basis = orthonormal(times(x, normal(x.n_columns, columns, 0, 1, random)));
  for (int64_t i = 0; i < kIterations; ++i) {
    end_if_stopped(stop_requested);
    basis = orthonormal(times(x, orthonormal(times(xt, basis))));
  }
  // The exact solution within the subspace: X^T Q = B^T, B B^T = V S^2 V^T, rows = Q V S.
  const auto inside = times(xt, basis).to(torch::kDouble);
  const auto [squares, vectors] = torch::linalg_eigh(inside.t().matmul(inside));
  const auto kept = vectors.flip(1).slice(1, 0, width);
  const auto sizes = squares.flip(0).slice(0, 0, width).clamp_min(0).sqrt();
  auto rows = basis.to(torch::kDouble).matmul(kept) * sizes;
  const auto largest = std::get<1>(rows.abs().max(0));
  const auto sign = rows.gather(0, largest.unsqueeze(0)).sign();
  return (rows * torch::where(sign == 0, torch::ones_like(sign), sign))
      .to(torch::kFloat)
      .contiguous();
}

}  // namespace tessera
