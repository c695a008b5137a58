#include <gtest/gtest.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <numeric>
#include <optional>
#include <sstream>

#include "tessera/base/files.h"
#include "tessera/eval/evaluate.h"
#include "tessera/model/registry.h"
#include "tessera/model/sampler.h"

namespace tessera {
namespace {

// The popularity table of specs: protocol section 9, on the files of $TESSERA_DATA. The files are
// read here, apart from the importer, so that the numbers hang on ranking and metrics alone.

struct Row {
  int32_t user, item;
  int64_t time;
  Split split;
};

/// scores of section 1 of baselines: train rows of the item.
class Popularity : public Model {
 public:
  explicit Popularity(const Dataset& data)
      : Model(Context{data.view(), Random(0), {}, {}}),
        counts_(item_counts(data.train, data.n_items).to(torch::kFloat)) {}
  Abilities abilities() const override { return {}; }
  torch::Tensor whole_scores(const Queries& queries) const override {
    return counts_.unsqueeze(0).expand({queries.size(), -1}).contiguous();
  }

 private:
  torch::Tensor counts_;
};

fs::path data_folder() {
  const char* folder = std::getenv("TESSERA_DATA");
  return folder != nullptr ? folder : "data";
}

std::vector<std::vector<std::string>> fields_of(const fs::path& path, char separator) {
  std::vector<std::vector<std::string>> rows;
  std::istringstream text(read_file(path));
  for (std::string line; std::getline(text, line);) {
    if (line.empty()) continue;
    rows.emplace_back();
    std::istringstream fields(line);
    for (std::string field; std::getline(fields, field, separator);) rows.back().push_back(field);
  }
  return rows;
}

/// Item indices in the order of the integer ids, gaps closed.
void close_gaps(std::vector<Row>& rows) {
  for (int32_t Row::* column : {&Row::user, &Row::item}) {
    std::vector<int32_t> ids;
    for (const Row& row : rows) ids.push_back(row.*column);
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    for (Row& row : rows) {
      row.*column =
          static_cast<int32_t>(std::lower_bound(ids.begin(), ids.end(), row.*column) - ids.begin());
    }
  }
}

/// Last row of a user test, the one before valid; equal times in file order.
void leave_one_out(std::vector<Row>& rows) {
  std::stable_sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) {
    return a.user != b.user ? a.user < b.user : a.time < b.time;
  });
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto last_of = [&](size_t j) {
      return j + 1 == rows.size() || rows[j + 1].user != rows[j].user;
    };
    rows[i].split = last_of(i)                                           ? Split::test
                    : rows[i + 1].user == rows[i].user && last_of(i + 1) ? Split::valid
                                                                         : Split::train;
  }
}

std::vector<Row> read_labelled(const fs::path& path) {
  std::vector<Row> rows;
  for (const auto& fields : fields_of(path, '\t')) {
    if (fields[0] == "user_id") continue;
    const std::string& label = fields.back();
    rows.push_back({std::stoi(fields[0]), std::stoi(fields[1]), 0,
                    label == "train"                     ? Split::train
                    : label == "valid" || label == "val" ? Split::valid
                                                         : Split::test});
  }
  return rows;
}

std::vector<Row> read_times(const fs::path& path) {
  std::vector<Row> rows;
  for (const auto& fields : fields_of(path, '\t')) {
    rows.push_back({std::stoi(fields[0]), std::stoi(fields[1]), std::stoll(fields[3]), {}});
  }
  leave_one_out(rows);
  return rows;
}

std::vector<Row> read_sequences(const fs::path& path) {
  std::vector<Row> rows;
  for (const auto& fields : fields_of(path, ' ')) {
    for (size_t i = 1; i < fields.size(); ++i) {
      rows.push_back({std::stoi(fields[0]), std::stoi(fields[i]), static_cast<int64_t>(i), {}});
    }
  }
  leave_one_out(rows);
  return rows;
}

Dataset build(std::vector<Row> rows) {
  close_gaps(rows);
  int64_t n_users = 0, n_items = 0;
  for (const Row& row : rows) {
    n_users = std::max<int64_t>(n_users, row.user + 1);
    n_items = std::max<int64_t>(n_items, row.item + 1);
  }
  const auto part = [&](Split split) {
    std::vector<int32_t> users, items;
    for (const Row& row : rows) {
      if (row.split != split) continue;
      users.push_back(row.user);
      items.push_back(row.item);
    }
    return make_interactions(n_users, users, items);
  };
  return make_dataset(n_users, n_items, part(Split::train), part(Split::valid), part(Split::test));
}

struct Expected {
  std::string protocol;
  double recall10, ndcg10, recall20, ndcg20;
};

void check(const std::string& file, std::vector<Row> (*read)(const fs::path&),
           const std::vector<Expected>& rows) {
  const fs::path path = data_folder() / file;
  if (!fs::exists(path)) GTEST_SKIP() << path.string() << " is missing: set TESSERA_DATA";
  const Dataset data = build(read(path));
  Popularity model(data);
  for (const Expected& expected : rows) {
    EvalOptions options;
    options.metrics = {"recall@10", "ndcg@10", "recall@20", "ndcg@20"};
    const Evaluation result =
        evaluate(model, data, find_protocol(expected.protocol), Split::test, options);
    EXPECT_EQ(fmt::format("{:.5f}", result.metrics[0].second),
              fmt::format("{:.5f}", expected.recall10))
        << expected.protocol;
    EXPECT_EQ(fmt::format("{:.5f}", result.metrics[1].second),
              fmt::format("{:.5f}", expected.ndcg10))
        << expected.protocol;
    EXPECT_EQ(fmt::format("{:.5f}", result.metrics[2].second),
              fmt::format("{:.5f}", expected.recall20))
        << expected.protocol;
    EXPECT_EQ(fmt::format("{:.5f}", result.metrics[3].second),
              fmt::format("{:.5f}", expected.ndcg20))
        << expected.protocol;
  }
}

TEST(PopularityTable, Baby) {
  check("amazon-baby/interactions.tsv", read_labelled,
        {{"strict", .02966, .01521, .04632, .01945}, {"mmrec", .02955, .01514, .04626, .01940}});
}

TEST(PopularityTable, Ml100k) {
  check("ml-100k/u.data", read_times,
        {{"strict", .08590, .04488, .12619, .05499},
         {"recbole-seq", .04984, .02241, .08271, .03059}});
}

TEST(PopularityTable, Ml1m) {
  check("ml-1m/interactions.tsv", read_labelled,
        {{"strict", .03940, .01940, .06987, .02702},
         {"recbole-seq", .01887, .00927, .04172, .01498}});
}

TEST(PopularityTable, Toys) {
  check("amazon-toys/sequences.txt", read_sequences, {{"strict", .00902, .00493, .01345, .00603}});
}

TEST(PopularityTable, Sports) {
  check("amazon-sports/sequences.txt", read_sequences,
        {{"strict", .00913, .00523, .01506, .00672}});
}

// The exact table of specs: sequential section 5.1.
struct Exact {
  std::string model, protocol;
  int64_t hits10;
  double hit5, hit10, hit20, ndcg10;
};

void check_exact(const std::string& file, std::vector<Row> (*read)(const fs::path&),
                 const std::vector<Exact>& rows) {
  const fs::path path = data_folder() / file;
  if (!fs::exists(path)) GTEST_SKIP() << path.string() << " is missing: set TESSERA_DATA";
  const Dataset data = build(read(path));
  for (const Exact& exact : rows) {
    const auto model = find_model(exact.model).make({}, Context{data.view(), Random(0), {}, {}});
    model->prepare({});
    EvalOptions options;
    options.metrics = {"hit@5", "hit@10", "hit@20", "ndcg@10"};
    const Evaluation result =
        evaluate(*model, data, find_protocol(exact.protocol), Split::test, options);
    const std::vector<double> wanted = {exact.hit5, exact.hit10, exact.hit20, exact.ndcg10};
    for (size_t i = 0; i < wanted.size(); ++i) {
      EXPECT_EQ(fmt::format("{:.6f}", result.metrics[i].second), fmt::format("{:.6f}", wanted[i]))
          << exact.model << " " << exact.protocol << " " << result.metrics[i].first;
    }
    EXPECT_NEAR(result.metrics[1].second * static_cast<double>(result.n_users),
                static_cast<double>(exact.hits10), 1e-6);
  }
}

TEST(ExactTable, Toys) {
  check_exact("amazon-toys/sequences.txt", read_sequences,
              {{"Popularity", "seq-none", 173, .005512, .008912, .013239, .004882},
               {"Popularity", "seq-mask", 175, .005564, .009015, .013445, .004933},
               {"MC1", "seq-none", 1366, .057902, .070369, .081341, .047324},
               {"MC1", "seq-mask", 1371, .058727, .070626, .081393, .047882}});
}

TEST(ExactTable, Sports) {
  check_exact("amazon-sports/sequences.txt", read_sequences,
              {{"Popularity", "seq-none", 319, .005534, .008961, .014860, .005101},
               {"Popularity", "seq-mask", 325, .005731, .009130, .015057, .005227},
               {"MC1", "seq-none", 1304, .028316, .036631, .046379, .023171},
               {"MC1", "seq-mask", 1314, .028457, .036912, .046463, .023442}});
}

TEST(ExactTable, Ml1m) {
  check_exact("ml-1m/interactions.tsv", read_labelled,
              {{"Popularity", "seq-none", 114, .008940, .018874, .041722, .009273},
               {"Popularity", "seq-mask", 238, .021854, .039404, .069868, .019398},
               {"MC1", "seq-none", 988, .110430, .163576, .232450, .091801},
               {"MC1", "seq-mask", 1158, .135762, .191722, .260596, .112142}});
}

/// Mean over the users of the mean over their history's items of what MC1's list after that item
/// alone gives for the test item, `seq-none`: what shuffling gives in expectation, as MC1 reads the
/// last item only and each is the last equally often. hit@10 and ndcg@10.
std::pair<double, double> expected_when_shuffled(Model& mc1, const Dataset& data) {
  Queries queries;  // every item as a history of its own
  queries.histories.items = torch::arange(data.n_items, torch::kInt32);
  queries.histories.offsets = torch::arange(data.n_items + 1, torch::kInt64);
  const TopLists lists = mc1.freeze()->top(queries, {}, {}, 10);
  double hit = 0, ndcg = 0;
  int64_t n_users = 0;
  for (int64_t user = 0; user < data.n_users; ++user) {
    if (data.test.of(user).empty()) continue;
    ++n_users;
    const int32_t target = data.test.of(user)[0];
    double hits = 0, gain = 0, n = 0;
    for (const Interactions* rows : {&data.train, &data.valid}) {
      for (const int32_t last : rows->of(user)) {
        n += 1;
        const auto* begin = lists.items.const_data_ptr<int32_t>() + int64_t{last} * 10;
        const auto at = std::find(begin, begin + 10, target);
        if (at == begin + 10) continue;
        hits += 1;
        gain += 1 / std::log2(static_cast<double>(at - begin) + 2);
      }
    }
    hit += hits / n;
    ndcg += gain / n;
  }
  return {hit / static_cast<double>(n_users), ndcg / static_cast<double>(n_users)};
}

// The exact expectations of specs sequential section 5.4: each history in random order, `seq-none`;
// to the last digit, and what evaluate() makes of two shuffles near them.
TEST(ExactTable, ShuffledHistories) {
  struct Wanted {
    std::string file;
    std::vector<Row> (*read)(const fs::path&);
    double hit10, ndcg10;
  };
  for (const Wanted& wanted :
       {Wanted{"amazon-toys/sequences.txt", read_sequences, .028734, .017210},
        Wanted{"amazon-sports/sequences.txt", read_sequences, .017454, .010005},
        Wanted{"ml-1m/interactions.tsv", read_labelled, .027921, .013610}}) {
    const fs::path path = data_folder() / wanted.file;
    if (!fs::exists(path)) GTEST_SKIP() << path.string() << " is missing: set TESSERA_DATA";
    const Dataset data = build(wanted.read(path));
    const auto ranked = [&](const std::string& name, std::optional<uint64_t> seed) {
      const auto model = find_model(name).make({}, Context{data.view(), Random(0), {}, {}});
      model->prepare({});
      EvalOptions options;
      options.metrics = {"hit@10", "ndcg@10"};
      options.shuffle_histories = seed;
      return evaluate(*model, data, find_protocol("seq-none"), Split::test, options);
    };
    const auto mc1 = find_model("MC1").make({}, Context{data.view(), Random(0), {}, {}});
    mc1->prepare({});
    const auto [exact_hit, exact_ndcg] = expected_when_shuffled(*mc1, data);
    EXPECT_EQ(fmt::format("{:.6f}", exact_hit), fmt::format("{:.6f}", wanted.hit10)) << wanted.file;
    EXPECT_EQ(fmt::format("{:.6f}", exact_ndcg), fmt::format("{:.6f}", wanted.ndcg10))
        << wanted.file;
    constexpr uint64_t kSeeds = 2;
    double hit = 0, ndcg = 0;
    for (uint64_t seed = 0; seed < kSeeds; ++seed) {
      const Evaluation result = ranked("MC1", seed);
      hit += result.value("hit@10") / kSeeds;
      ndcg += result.value("ndcg@10") / kSeeds;
    }
    // Four standard errors of a mean of hits.
    const auto n = static_cast<double>(kSeeds * data.n_users);
    EXPECT_NEAR(hit, wanted.hit10, 4 * std::sqrt(wanted.hit10 / n)) << wanted.file;
    EXPECT_NEAR(ndcg, wanted.ndcg10, 4 * std::sqrt(wanted.ndcg10 / n)) << wanted.file;
    EXPECT_EQ(ranked("Popularity", 1).value("ndcg@10"), ranked("Popularity", {}).value("ndcg@10"));
  }
}

// Counts of specs: kdsr section 8; a recall times the number of test rows is a whole number.
TEST(Ratio20, Counts) {
  struct Wanted {
    std::string file;
    std::vector<Row> (*read)(const fs::path&);
    int64_t train_rows, test_rows;
    double mean_prefix, mean_square;  // of the last 50 items; 0: not in the table
  };
  for (const Wanted& wanted :
       {Wanted{"amazon-toys/sequences.txt", read_sequences, 119424, 28761, 6.60, 118.0},
        Wanted{"amazon-sports/sequences.txt", read_sequences, 210551, 50188, 5.40, 68.5},
        Wanted{"ml-1m/interactions.tsv", read_labelled, 796513, 197656, 0, 0}}) {
    const fs::path path = data_folder() / wanted.file;
    if (!fs::exists(path)) GTEST_SKIP() << path.string() << " is missing: set TESSERA_DATA";
    std::vector<Row> rows = wanted.read(path);  // of a user in order
    std::stable_sort(rows.begin(), rows.end(),
                     [](const Row& a, const Row& b) { return a.user < b.user; });
    double prefix = 0, square = 0;
    for (size_t begin = 0; begin < rows.size();) {
      size_t end = begin;
      while (end < rows.size() && rows[end].user == rows[begin].user) ++end;
      const size_t n_test = (end - begin) / 5;
      for (size_t i = begin; i < end; ++i) {
        rows[i].split = i + n_test < end ? Split::train : Split::test;
        if (i == begin || i + n_test >= end) continue;
        const auto length = static_cast<double>(std::min<size_t>(i - begin, 50));
        prefix += length;
        square += length * length;
      }
      begin = end;
    }
    const Dataset data = build(rows);
    BatchSpec spec;
    spec.unit = BatchSpec::Unit::sequence_row;
    spec.rows = BatchSpec::Rows::prefix;
    EXPECT_EQ(Sampler(data.view(), spec, 1, Random(1)).n_batches(), wanted.train_rows);
    if (wanted.mean_prefix > 0) {
      const auto n = static_cast<double>(wanted.train_rows);
      EXPECT_EQ(fmt::format("{:.2f}", prefix / n), fmt::format("{:.2f}", wanted.mean_prefix));
      EXPECT_EQ(fmt::format("{:.1f}", square / n), fmt::format("{:.1f}", wanted.mean_square));
    }
    Popularity model(data);
    EvalOptions options;
    options.metrics = {"recall@5", "ndcg@20"};
    const Evaluation result = evaluate(model, data, find_protocol("ratio20"), Split::test, options);
    EXPECT_EQ(result.n_users, wanted.test_rows);
    const double hits = result.value("recall@5") * static_cast<double>(wanted.test_rows);
    EXPECT_NEAR(hits, std::round(hits), 1e-6);
  }
}

// The table of specs: sequential section 1: targets by kind of row, and what train never shows.
TEST(SequenceRows, TargetsOfTheSets) {
  struct Wanted {
    std::string file;
    std::vector<Row> (*read)(const fs::path&);
    int64_t targets;
    std::string in_50, in_200;  // percent of them in a user's last window
    int64_t cold_items, cold_tests;
  };
  for (const Wanted& wanted :
       {Wanted{"amazon-toys/sequences.txt", read_sequences, 109361, "97.5", "99.7", 48, 279},
        Wanted{"amazon-sports/sequences.txt", read_sequences, 189543, "99.2", "100.0", 73, 317},
        Wanted{"ml-1m/interactions.tsv", read_labelled, 982089, "27.1", "65.9", 2, 2}}) {
    const fs::path path = data_folder() / wanted.file;
    if (!fs::exists(path)) GTEST_SKIP() << path.string() << " is missing: set TESSERA_DATA";
    const Dataset data = build(wanted.read(path));
    const auto targets = [&](BatchSpec::Rows rows, int64_t length) {
      BatchSpec spec;
      spec.unit = BatchSpec::Unit::sequence_row;
      spec.rows = rows;
      spec.max_length = length;
      if (rows == BatchSpec::Rows::prefix)
        return Sampler(data.view(), spec, 1, Random(1)).n_batches();
      Sampler sampler(data.view(), spec, 1024, Random(1));
      sampler.begin_epoch(0);
      int64_t n = 0;
      for (int64_t i = 0; i < sampler.n_batches(); ++i) n += sampler.batch(i, 1).targets.size(0);
      return n;
    };
    EXPECT_EQ(targets(BatchSpec::Rows::prefix, 50), wanted.targets) << wanted.file;
    for (const auto& [length, percent] : {std::pair(50, wanted.in_50), {200, wanted.in_200}}) {
      EXPECT_EQ(targets(BatchSpec::Rows::chunk, length), wanted.targets) << wanted.file;
      int64_t last_windows = 0;
      for (int64_t user = 0; user < data.n_users; ++user) {
        const auto n = static_cast<int64_t>(data.train.of(user).size());
        last_windows += std::min<int64_t>(std::max<int64_t>(n - 1, 0), length);
      }
      EXPECT_EQ(targets(BatchSpec::Rows::user, length), last_windows) << wanted.file;
      EXPECT_EQ(fmt::format("{:.1f}", 100.0 * static_cast<double>(last_windows) /
                                          static_cast<double>(wanted.targets)),
                percent)
          << wanted.file;
    }
    const auto counts = item_counts(data.train, data.n_items);
    EXPECT_EQ((counts == 0).sum().item<int64_t>(), wanted.cold_items) << wanted.file;
    int64_t cold = 0;
    for (int64_t user = 0; user < data.n_users; ++user) {
      for (const int32_t item : data.test.of(user)) cold += counts[item].item<int64_t>() == 0;
    }
    EXPECT_EQ(cold, wanted.cold_tests) << wanted.file;
  }
}

}  // namespace
}  // namespace tessera
