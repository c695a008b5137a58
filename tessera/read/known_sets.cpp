#include "tessera/read/known_sets.h"

#include <algorithm>
#include <charconv>

#include "tessera/base/error.h"
#include "tessera/base/files.h"

namespace tessera {
namespace {

/// "160,792"
std::string grouped(int64_t n) {
  const std::string digits = std::to_string(n);
  std::string out;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) out += ',';
    out += digits[i];
  }
  return out;
}

/// How many counts agree; the train and one held-out part of a known split are as good as one.
int n_equal(const KnownSet& set, const SetCounts& counts) {
  const bool split = std::any_of(set.splits.begin(), set.splits.end(), [&](const auto& known) {
    return known.train == counts.train &&
           (known.valid == counts.valid || known.test == counts.test);
  });
  return (set.n_users == counts.n_users) + (set.n_items == counts.n_items) +
         (set.n_interactions == counts.n_interactions) + split;
}

std::string rows_of(int64_t train, int64_t valid, int64_t test) {
  return fmt::format("{} / {} / {}", grouped(train), grouped(valid), grouped(test));
}

std::string split_words(const KnownSet& set, const SetCounts& counts,
                        std::vector<std::string>& differences) {
  if (counts.valid == 0 && counts.test == 0) return "";
  for (const auto& split : set.splits) {
    if (split.train == counts.train && split.valid == counts.valid && split.test == counts.test) {
      return fmt::format(", {} split", split.name);
    }
  }
  for (const auto& split : set.splits) {
    if (split.train != counts.train) continue;
    if (split.valid == counts.valid && counts.test == 0) {
      return fmt::format(", {} split without its {} test rows", split.name, grouped(split.test));
    }
    if (split.test == counts.test && counts.valid == 0) {
      return fmt::format(", {} split without its {} valid rows", split.name, grouped(split.valid));
    }
  }
  std::string known;
  for (const auto& split : set.splits) {
    known += fmt::format("{}{} is {}", known.empty() ? "" : ", ", split.name,
                         rows_of(split.train, split.valid, split.test));
  }
  differences.push_back(
      fmt::format("split into {}{}", rows_of(counts.train, counts.valid, counts.test),
                  known.empty() ? ", no public split is known" : ", where " + known));
  return "";
}

/// The largest id plus one where all are decimal numbers, else how many there are.
int64_t dense_size(const Vocabulary& ids) {
  int64_t largest = -1;
  for (int64_t i = 0; i < ids.size(); ++i) {
    const std::string_view id = ids[i];
    int64_t value = 0;
    const auto [end, error] = std::from_chars(id.data(), id.data() + id.size(), value);
    if (error != std::errc() || end != id.data() + id.size() || value < 0) return ids.size();
    largest = std::max(largest, value);
  }
  return largest + 1;
}

}  // namespace

const std::vector<KnownSet>& known_sets() {
  static const std::map<std::string, std::vector<int64_t>> amazon = {{"image", {4096}},
                                                                     {"text", {384, 1024}}};
  static const std::vector<KnownSet> all = {
      {"Baby (Amazon 2014, 5-core)",
       19445,
       7050,
       160792,
       {{"MMRec", 118551, 20559, 21682}, {"MMSSL and DiffMM", 118551, 21682, 20559}},
       amazon,
       ""},
      {"Sports (Amazon 2014, 5-core)",
       35598,
       18357,
       296337,
       {{"MMRec", 218409, 37899, 40029},
        {"MMSSL", 218409, 40029, 37899},
        {"leave-one-out", 225141, 35598, 35598}},
       amazon,
       "180 items have no image, the mean is filled in"},
      {"Clothing (Amazon 2014, 5-core)",
       39387,
       23033,
       278677,
       {{"MMRec", 197338, 40150, 41189}},
       amazon,
       ""},
      {"Electronics (Amazon 2014, 5-core)",
       192403,
       63001,
       1689188,
       {},
       {{"image", {4096}}, {"text", {384}}},
       ""},
      {"TikTok (MMSSL files)",
       9308,
       6710,
       68722,
       {{"MMSSL and DiffMM", 59541, 3051, 6130}},
       {{"image", {128}}, {"audio", {128}}, {"text", {768}}},
       "the paper prints 9,319 users and 59,541 interactions, which is train alone"},
      {"Allrecipes (MMSSL files)",
       19805,
       10068,
       73494,
       {{"MMSSL", 58922, 6751, 7821}},
       {{"image", {2048}}, {"text", {20}}},
       "the paper prints 10,067 items and 58,922 interactions, which is train alone; its text "
       "features "
       "are sorted ingredient ids padded with 33147, not an embedding"},
      {"ML-1M", 6040, 3706, 1000209, {{"leave-one-out", 988129, 6040, 6040}}, {}, ""},
      {"ML-1M, 5-core", 6040, 3416, 999611, {}, {}, ""},
      {"ML-1M, 10-core", 6040, 3260, 998539, {}, {}, ""},
      {"ML-100K", 943, 1682, 100000, {{"leave-one-out", 98114, 943, 943}}, {}, ""},
      {"ML-100K, 5-core", 943, 1349, 99287, {}, {}, ""},
      {"ML-100K, 10-core", 943, 1152, 97953, {}, {}, ""},
      {"Beauty (Amazon 2014, 5-core)",
       22363,
       12101,
       198502,
       {{"leave-one-out", 153776, 22363, 22363}},
       {},
       ""},
      {"the other Beauty (40,226 users)",
       40226,
       54542,
       353962,
       {},
       {},
       "not the Beauty of most papers, which has 22,363 users"},
      {"Toys (Amazon 2014, 5-core)",
       19412,
       11924,
       167597,
       {{"leave-one-out", 128773, 19412, 19412}},
       {},
       ""},
  };
  return all;
}

std::string known_set_words(const SetCounts& counts) {
  const KnownSet* best = nullptr;
  for (const auto& set : known_sets()) {
    if (n_equal(set, counts) >= 2 && (!best || n_equal(set, counts) > n_equal(*best, counts))) {
      best = &set;
    }
  }
  if (!best) return "";
  std::vector<std::string> differences;
  const auto differ = [&](int64_t found, int64_t wanted, const char* what) {
    if (found != wanted) {
      differences.push_back(
          fmt::format("{} {}, {} expected", grouped(found), what, grouped(wanted)));
    }
  };
  differ(counts.n_users, best->n_users, "users");
  differ(counts.n_items, best->n_items, "items");
  const std::string split = split_words(*best, counts, differences);
  // Rows that a known split says are missing are told once.
  if (split.find("without") == std::string::npos) {
    differ(counts.n_interactions, best->n_interactions, "interactions");
  }
  for (const auto& [modality, width] : counts.widths) {
    const auto known = best->widths.find(modality);
    if (known == best->widths.end() ||
        std::find(known->second.begin(), known->second.end(), width) != known->second.end()) {
      continue;
    }
    differences.push_back(fmt::format("{} features are {} wide, its papers' {}", modality, width,
                                      fmt::join(known->second, " or ")));
  }
  std::string out = fmt::format("this is {}{}", best->name, split);
  if (!differences.empty()) out += fmt::format(", but: {}", fmt::join(differences, "; "));
  if (!best->remark.empty()) out += fmt::format(" ({})", best->remark);
  return out;
}

std::string known_set_of(const fs::path& path, const ReadOptions& options, uint64_t most_bytes) {
  std::vector<Detected> files;
  uint64_t bytes = 0;
  std::error_code error;
  for (auto& file : detect_sources({path}, options)) {
    if (file.use != Use::interactions) continue;
    bytes += fs::file_size(file.path, error);
    if (error) return "";
    files.push_back(std::move(file));
  }
  if (files.empty() || bytes > most_bytes) return "";
  EventTable table;
  Json report = Json::object();
  read_interactions(files, options, table, report);
  SetCounts counts;
  counts.n_users = table.users.size();
  counts.n_items = table.items.size();
  counts.n_interactions = table.n_rows();
  for (const Split split : table.split) {
    counts.train += split == Split::train;
    counts.valid += split == Split::valid;
    counts.test += split == Split::test;
  }
  const std::string words = known_set_words(counts);
  // Items may have feature rows and no interaction: ids are indices then.
  SetCounts dense = counts;
  dense.n_users = dense_size(table.users);
  dense.n_items = dense_size(table.items);
  const std::string other = known_set_words(dense);
  const auto exact = [](const std::string& text) {
    return text.find(", but:") == std::string::npos;
  };
  if (words.empty() || (!exact(words) && !other.empty() && exact(other))) return other;
  return words;
}

bool wrote_without_made_by(std::string_view encoder) {
  return encoder == "PAMD" || encoder == "R2MR";
}

}  // namespace tessera
