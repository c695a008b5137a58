#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/base/json.h"
#include "tessera/data/events.h"

namespace tessera {

enum class SplitKind {
  given,
  random,
  leave_one_out,
  temporal_user,
  temporal_global,
  cold_item,
  cold_user,
  k_fold,
};

enum class Rounding { mmrec, lattice, recbole, floor };

/// What `--split` and `--rounding` ask for.
struct SplitSpec {
  SplitKind kind = SplitKind::random;
  Rounding rounding = Rounding::mmrec;
  std::array<double, 3> ratios = {.8, .1, .1};  ///< train, valid, test
  std::array<int64_t, 2> cuts = {0, 0};         ///< temporal-global by dates: Unix seconds
  bool has_cuts = false;
  int64_t folds = 5;
  int64_t history = -1;  ///< cold-user: first rows given to the model; -1: half, rounded up
  uint64_t seed = 999;

  std::string name() const;  ///< "random", "leave-one-out", ..
  /// Kind, ratios, rounding, seed: what decides the split, and no more.
  Json json() const;
};

/// "random", "random:.8,.1,.1", "leave-one-out", "temporal-user[:ratios]",
/// "temporal-global[:ratios | :date,date]", "cold-item", "cold-user[:history rows]", "k-fold[:k]",
/// "given". An empty `rounding` is `recbole` with ratios, else `mmrec`. Exit 2 otherwise, with the
/// nearest name.
SplitSpec parse_split(std::string_view text, std::string_view rounding = "", uint64_t seed = 999);

/// Rows of a user with n rows as train, valid, test (specs/protocol.md section 3).
std::array<int64_t, 3> held_out_sizes(int64_t n, Rounding rounding,
                                      const std::array<double, 3>& ratios);

/// What a split drew besides the labels.
struct SplitResult {
  std::vector<uint8_t> fold;    ///< of k-fold: [n_rows], else empty
  Json drawn = Json::object();  ///< "cut_times", "n_cold_items", .. for dataset.json
};

/// Labels every row but the read events (`seen`), which keep theirs. Users and items of the table
/// must already have their final indices: draws are keyed by (seed, user). Exit 3 for order-only
/// data under temporal-global, data without order under leave-one-out and temporal-user, data
/// without labels under given.
SplitResult assign_split(EventTable& table, const SplitSpec& spec);

}  // namespace tessera
