#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tessera/model/model.h"

namespace tessera {

struct TfidfOptions {
  int64_t width = 256;
  int64_t words = 2;                      ///< n-grams of up to so many words
  int64_t letters_from = 3, letters = 5;  ///< n-grams of letters within a word; letters 0: none
  int64_t min_count = 2;                  ///< texts that a term must occur in
  int64_t buckets = int64_t{1} << 18;     ///< terms are hashed into
};

/// Latent semantic vectors of texts: hashed n-grams, (1 + log tf) * (log((1 + N) / (1 + df)) + 1),
/// rows of length 1, then the coordinates on the first `width` right singular directions by
/// subspace iteration (largest entry of a direction positive). Bytes above 127 count as letters,
/// A-Z as a-z. float32 [texts, min(width, texts, terms)]; a text without a term is a zero row.
/// Ends as interrupted once `stop_requested` says so.
/// The same for any number of threads up to rounding of the dense products.
torch::Tensor tfidf_rows(const std::vector<std::string>& texts, const TfidfOptions& options,
                         const Random& random, const std::function<bool()>& stop_requested = {});

}  // namespace tessera
