#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/read/readers.h"

namespace tessera {

/// A public data set, known by its counts (specs/protocol.md section 9).
struct KnownSet {
  struct Split {
    std::string name;
    int64_t train, valid, test;
  };
  std::string name;
  int64_t n_users, n_items, n_interactions;
  std::vector<Split> splits;
  std::map<std::string, std::vector<int64_t>> widths;  ///< of its papers' features
  std::string remark;
};
const std::vector<KnownSet>& known_sets();

/// What a table counts. 0 held-out rows of both kinds: not split.
struct SetCounts {
  int64_t n_users = 0, n_items = 0, n_interactions = 0;
  int64_t train = 0, valid = 0, test = 0;
  std::map<std::string, int64_t> widths;
};

/// "this is Baby (Amazon 2014, 5-core), MMRec split", with what differs where two of the three
/// counts agree, or an empty text.
std::string known_set_words(const SetCounts& counts);

/// The same for raw files, which are read and counted; empty for what are no interactions, and for
/// more than `most_bytes` of them.
std::string known_set_of(const std::filesystem::path& path, const ReadOptions& options,
                         uint64_t most_bytes = uint64_t{256} << 20);

/// True for the encoders that features.json names in files a model wrote without encoder.made_by:
/// other programs and the first folders follow the convention that told such files by the name.
bool wrote_without_made_by(std::string_view encoder);

}  // namespace tessera
