#include "tessera/import/import.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>

#include "tessera/base/files.h"
#include "tessera/data/npy.h"
#include "tessera/folder/folder.h"
#include "tessera/folder/load.h"
#include "tessera/folder/manifest.h"
#include "tests/unit/real_data.h"
#include "tests/unit/temp_folder.h"

namespace tessera {
namespace {

ImportOptions options_for(const TempFolder& at, const std::vector<fs::path>& paths) {
  ImportOptions options;
  options.paths = paths;
  options.output = at / "out";
  return options;
}

std::string text_of(const fs::path& path) { return read_file(path); }

constexpr const char* kShop =
    "user_id\titem_id\trating\ttimestamp\n"
    "b\tx\t5\t100\n"
    "a\ty\t4\t300\n"
    "a\tx\t3\t200\n"
    "c\tx\t5\t100\n"
    "a\tz\t5\t400\n"
    "b\ty\t2\t50\n";

TEST(Import, WritesTheFolder) {
  TempFolder at;
  ImportOptions options = options_for(at, {at.file("shop.tsv", kShop)});
  options.split = "leave-one-out";
  const Json result = import_dataset(options, Log());
  // a: x(200) y(300) z(400); b: y(50) x(100); c: x.
  EXPECT_EQ(text_of(at / "out/interactions.tsv"),
            "user_id\titem_id\trating\ttimestamp\tsplit\n"
            "b\tx\t5\t100\ttest\n"
            "a\ty\t4\t300\tvalid\n"
            "a\tx\t3\t200\ttrain\n"
            "c\tx\t5\t100\ttrain\n"
            "a\tz\t5\t400\ttest\n"
            "b\ty\t2\t50\ttrain\n");
  EXPECT_EQ(text_of(at / "out/user_map.tsv"), "raw_id\tindex\nb\t0\na\t1\nc\t2\n");
  EXPECT_EQ(text_of(at / "out/item_map.tsv"), "raw_id\tindex\nx\t0\ny\t1\nz\t2\n");
  const Json about = read_json(at / "out/dataset.json");
  EXPECT_EQ(about["name"], "out");
  EXPECT_EQ(about["n_users"], 3);
  EXPECT_EQ(about["n_train"], 3);
  EXPECT_DOUBLE_EQ(about["sparsity"].get<double>(), 1.0 - 6.0 / 9.0);
  EXPECT_EQ(about["items_only_held_out"], 1);
  EXPECT_EQ(about["columns"], Json({"user_id", "item_id", "rating", "timestamp", "split"}));
  EXPECT_EQ(about["split"]["kind"], "leave-one-out");
  EXPECT_EQ(about["sources"][0]["sha256"], sha256(kShop));
  // The sorted lines by hand.
  EXPECT_EQ(about["train_sha256"], sha256("a\tx\nb\ty\nc\tx\n"));
  EXPECT_EQ(about["split_sha256"],
            sha256("a\tx\ttrain\na\ty\tvalid\na\tz\ttest\nb\tx\ttest\nb\ty\ttrain\nc\tx\ttrain\n"));
  for (const auto& [file, hash] : about["files"].items()) {
    EXPECT_EQ(hash, sha256_of_file(at / ("out/" + file))) << file;
  }
  for (const char* file : {"interactions.tsv", "user_map.tsv", "item_map.tsv", "items.tsv",
                           "media.tsv", "features.json", "import_report.json"}) {
    EXPECT_TRUE(about["files"].contains(file)) << file;
  }
  EXPECT_EQ(result["counts"]["n_test"], 2);
}

TEST(Import, SameFilesSameBytes) {
  TempFolder at;
  ImportOptions options = options_for(at, {at.file("shop.tsv", kShop)});
  import_dataset(options, Log());
  const std::string first = text_of(at / "out/dataset.json");
  import_dataset(options, Log());
  EXPECT_EQ(text_of(at / "out/dataset.json"), first);
}

TEST(Import, DecimalIdsStandInNumericOrder) {
  TempFolder at;
  ImportOptions options =
      options_for(at, {at.file("a.tsv",
                               "user_id\titem_id\nu2\t10\nu1\t9\nu2\t100000000000000000000\n"
                               "u1\t-3\nu1\t10\n")});
  import_dataset(options, Log());
  EXPECT_EQ(text_of(at / "out/item_map.tsv"),
            "raw_id\tindex\n-3\t0\n9\t1\n10\t2\n100000000000000000000\t3\n");
  EXPECT_EQ(text_of(at / "out/user_map.tsv"), "raw_id\tindex\nu2\t0\nu1\t1\n");
}

TEST(Import, CatalogueItemsWithoutEventsAreItems) {
  TempFolder at;
  ImportOptions options = options_for(at, {at.file("shop.tsv", kShop)});
  options.items = at.file("items.jsonl",
                          "{\"item_id\":\"w\",\"title\":\"Wool\\tcap\"}\n"
                          "{\"item_id\":\"x\",\"title\":\"Axe\"}\n");
  const Json result = import_dataset(options, Log());
  EXPECT_EQ(result["counts"]["n_items"], 4);
  EXPECT_EQ(result["counts"]["items_without_rows"], 1);
  EXPECT_EQ(text_of(at / "out/items.tsv"), "item_id\ttitle\nx\tAxe\nw\tWool cap\n");
  const Dataset data = load_dataset(at / "out");
  EXPECT_EQ(data.item_columns.title(3), "Wool cap");
  EXPECT_EQ(data.item_columns.title(1), "");
}

TEST(Import, WhatAFilterRemovesLeavesTheCatalogueToo) {
  TempFolder at;
  ImportOptions options = options_for(at, {at.file("shop.tsv", kShop)});
  options.items = at.file("items.jsonl",
                          "{\"item_id\":\"w\",\"title\":\"Wool\"}\n"
                          "{\"item_id\":\"z\",\"title\":\"Zinc\"}\n");
  options.core_users = options.core_items = 2;
  const Json result = import_dataset(options, Log());
  // z has one user and c one item; w has no event and is no filter's business.
  EXPECT_EQ(text_of(at / "out/item_map.tsv"), "raw_id\tindex\nx\t0\ny\t1\nw\t2\n");
  EXPECT_EQ(text_of(at / "out/user_map.tsv"), "raw_id\tindex\nb\t0\na\t1\n");
  EXPECT_EQ(result["drops"]["core"], 2);
  EXPECT_EQ(result["drops"]["items_filtered"], 1);
  EXPECT_EQ(result["drops"]["users_filtered"], 1);
  EXPECT_EQ(result["filters"][1]["before"]["interactions"], 6);
  EXPECT_EQ(result["filters"][1]["after"]["interactions"], 4);
}

TEST(Import, MmrecIdsAreIndices) {
  TempFolder at;
  ImportOptions options =
      options_for(at, {at.file("toy.inter",
                               "userID\titemID\trating\ttimestamp\tx_label\n"
                               "3\t4\t1\t0\t0\n0\t1\t1\t0\t0\n0\t4\t1\t0\t2\n3\t1\t1\t0\t1\n")});
  const Json result = import_dataset(options, Log());
  EXPECT_EQ(result["split"]["kind"], "given");
  EXPECT_EQ(result["counts"]["n_users"], 4);
  EXPECT_EQ(result["counts"]["n_items"], 5);
  EXPECT_EQ(result["counts"]["n_train"], 2);
  EXPECT_EQ(result["counts"]["n_valid"], 1);
  EXPECT_EQ(text_of(at / "out/item_map.tsv"), "raw_id\tindex\n0\t0\n1\t1\n2\t2\n3\t3\n4\t4\n");
  options.ids = "sparse";
  EXPECT_EQ(import_dataset(options, Log())["counts"]["n_items"], 2);
}

TEST(Import, RowsOfAFeatureWithoutIdsAreItems) {
  TempFolder at;
  const fs::path events = at.file("raw/events.tsv", "user_id\titem_id\nu\t0\nu\t3\nv\t3\n");
  write_npy(at / "raw/image_feat.npy", torch::arange(12, torch::kFloat).reshape({6, 2}));
  ImportOptions options = options_for(at, {events});
  const Json result = import_dataset(options, Log());
  EXPECT_EQ(result["counts"]["n_items"], 6);
  EXPECT_EQ(result["features"]["image"]["matched"], 6);
  const Dataset data = load_dataset(at / "out");
  ASSERT_EQ(data.features.size(), 1u);
  EXPECT_EQ(data.features[0].all()[3][1].item<float>(), 7);
  // An id beyond the rows is refused.
  at.file("raw/events.tsv", "user_id\titem_id\nu\t0\nu\t6\n");
  EXPECT_EQ(error_of([&] { import_dataset(options, Log()); }).substr(0, 36),
            "3: feature 'image' has 6 rows and no");
  // So is an id that is no row number; without the file it is one id among others.
  at.file("raw/events.tsv", "user_id\titem_id\nu\t0\nu\tcap\n");
  EXPECT_EQ(
      error_of([&] { import_dataset(options, Log()); }),
      "3: `ids` dense: item id 'cap' is no row number (0, 1, 2, ..); choose `ids` sparse, and "
      "give features their .ids");
  options.no_features = true;
  EXPECT_EQ(import_dataset(options, Log())["counts"]["n_items"], 2);
}

TEST(Import, FeaturesOfADenseSetFollowTheirItemsThroughAFilter) {
  TempFolder at;
  const fs::path events =
      at.file("raw/events.tsv", "user_id\titem_id\n0\t0\n0\t2\n1\t0\n1\t2\n1\t1\n");
  write_npy(at / "raw/image_feat.npy", torch::arange(8, torch::kFloat).reshape({4, 2}));
  ImportOptions options = options_for(at, {events});
  options.core_users = options.core_items = 2;
  import_dataset(options, Log());
  // Item 1 left; item 3 never had an event and stays.
  EXPECT_EQ(text_of(at / "out/item_map.tsv"), "raw_id\tindex\n0\t0\n2\t1\n3\t2\n");
  const Dataset data = load_dataset(at / "out");
  EXPECT_EQ(data.features[0].all()[1][0].item<float>(), 4);
  EXPECT_EQ(data.features[0].all()[2][0].item<float>(), 6);
}

TEST(Import, DenseIdsFarApartAreRefused) {
  TempFolder at;
  ImportOptions options =
      options_for(at, {at.file("a.tsv", "user_id\titem_id\n1\t2000000000\n2\t7\n")});
  options.ids = "dense";
  EXPECT_EQ(error_of([&] { import_dataset(options, Log()); }),
            "3: `ids` dense: item ids reach 2000000000 with only 2 in use; choose `ids` sparse");
}

constexpr const char* kEvents =
    "user_id\titem_id\tevent\ttimestamp\n"
    "a\tx\tview\t1\na\tx\tclick\t2\na\ty\tclick\t3\nb\tz\tview\t4\nb\tx\tbuy\t5\nb\tw\thover\t6\n"
    "a\tx\tview\t7\n";

TEST(Import, SeveralEventTypesNeedAChoice) {
  TempFolder at;
  ImportOptions options = options_for(at, {at.file("events.tsv", kEvents)});
  EXPECT_EQ(
      error_of([&] { import_dataset(options, Log()); }),
      "2: which event types train? choose with `positive` (and `read` for those that only "
      "count as seen): there are view (3 rows), click (2 rows), buy (1 rows), hover (1 rows)");
  options.positive = {"clik"};
  EXPECT_EQ(error_of([&] { import_dataset(options, Log()); }),
            "2: no event type 'clik' (did you mean 'click'?): there are view (3 rows), click (2 "
            "rows), buy (1 rows), hover (1 rows)");
  EXPECT_FALSE(fs::exists(at / "out"));
}

TEST(Import, PositiveTypesTrainAndReadTypesAreSeen) {
  TempFolder at;
  ImportOptions options = options_for(at, {at.file("events.tsv", kEvents)});
  options.positive = {"click", "buy"};
  options.read = {"view"};
  const Json result = import_dataset(options, Log());
  EXPECT_EQ(result["counts"]["n_interactions"], 3);
  EXPECT_EQ(result["counts"]["n_seen"], 2);
  EXPECT_EQ(result["drops"]["event_types_left_out"], 1);
  EXPECT_EQ(result["drops"]["seen_repeats"], 1);
  EXPECT_EQ(result["drops"]["items_only_in_left_out_events"], 1);
  const Dataset data = load_dataset(at / "out");
  EXPECT_EQ(data.about["events"]["positive"], Json({"click", "buy"}));
  EXPECT_EQ(data.about["events"]["left_out"], Json({{"hover", 1}}));
  EXPECT_EQ(data.item_ids.find("w"), -1);
  const int32_t b = data.user_ids.find("b");
  ASSERT_EQ(data.seen.of(b).size(), 1u);
  EXPECT_EQ(data.item_ids[data.seen.of(b)[0]], "z");
  EXPECT_EQ(data.train.n_rows() + data.valid.n_rows() + data.test.n_rows(), 3);
}

TEST(Import, GorseConfigurationGivesBothLists) {
  TempFolder at;
  const fs::path feedback = at.file("feedback.jsonl",
                                    "{\"FeedbackType\":\"like\",\"UserId\":\"a\",\"ItemId\":\"x\","
                                    "\"Timestamp\":\"2024-01-01T00:00:00Z\"}\n"
                                    "{\"FeedbackType\":\"read\",\"UserId\":\"a\",\"ItemId\":\"y\","
                                    "\"Timestamp\":\"2024-01-02T00:00:00Z\"}\n"
                                    "{\"FeedbackType\":\"skip\",\"UserId\":\"a\",\"ItemId\":\"z\","
                                    "\"Timestamp\":\"2024-01-03T00:00:00Z\"}\n");
  const fs::path config = at.file("config.toml",
                                  "[recommend.data_source]\n"
                                  "positive_feedback_types = [\"like\", \"star\"]\n"
                                  "read_feedback_types = [\"read\"]\n");
  const Json result = import_dataset(options_for(at, {feedback, config}), Log());
  EXPECT_EQ(result["counts"]["n_train"], 1);
  EXPECT_EQ(result["counts"]["n_seen"], 1);
  EXPECT_EQ(result["drops"]["event_types_left_out"], 1);
}

TEST(Import, RepeatsOfGivenLabelsAreKept) {
  TempFolder at;
  const std::string rows =
      "user_id\titem_id\tsplit\na\tx\ttrain\na\tx\ttest\na\ty\ttrain\na\tz\tvalid\n";
  ImportOptions options = options_for(at, {at.file("a.tsv", rows)});
  Json result = import_dataset(options, Log());
  EXPECT_EQ(result["counts"]["n_interactions"], 4);
  EXPECT_EQ(result["filters"][0]["repeats"], 1);
  // Another split of the rows keeps each pair once.
  options.split = "random";
  result = import_dataset(options, Log());
  EXPECT_EQ(result["counts"]["n_interactions"], 3);
}

TEST(Import, AnotherSplitOfAFolder) {
  TempFolder at;
  ImportOptions options = options_for(at, {at.file("raw/shop.tsv", kShop)});
  write_npy(at / "raw/text_feat.npy", torch::ones({2, 3}));
  at.file("raw/text_feat.ids", "z\nx\n");
  options.items = at.file("items.jsonl", "{\"item_id\":\"z\",\"title\":\"Zinc\"}\n");
  import_dataset(options, Log());
  // A feature that was made from the train rows of this split.
  Json manifest = read_json(at / "out/features.json");
  manifest["image"] = manifest["text"];
  manifest["image"]["valid_for"] = read_json(at / "out/dataset.json")["train_sha256"];
  write_json(at / "out/features.json", manifest);
  ImportOptions again;
  again.paths = {at / "out"};
  again.output = at / "other";
  again.split = "leave_one_out";
  const Json result = import_dataset(again, Log());
  EXPECT_EQ(result["split"]["kind"], "leave-one-out");
  EXPECT_EQ(result["counts"]["n_test"], 2);
  EXPECT_EQ(result["drops"]["features_bound_to_another_split"], 1);
  const Dataset data = load_dataset(at / "other");
  ASSERT_EQ(data.features.size(), 1u);
  EXPECT_EQ(data.features[0].name, "text");
  EXPECT_EQ(data.item_columns.title(data.item_ids.find("z")), "Zinc");
  EXPECT_EQ(text_of(at / "other/item_map.tsv"), text_of(at / "out/item_map.tsv"));
  EXPECT_EQ(data.about["sources"], read_json(at / "out/dataset.json")["sources"]);
  // In place: the folder is exchanged for its new split.
  again.output = at / "out";
  import_dataset(again, Log());
  EXPECT_EQ(load_dataset(at / "out").about["split"]["kind"], "leave-one-out");
}

TEST(Import, AFailureLeavesTheOldFolder) {
  TempFolder at;
  ImportOptions options = options_for(at, {at.file("raw/shop.tsv", kShop)});
  import_dataset(options, Log());
  const std::string before = text_of(at / "out/dataset.json");
  // NaN is met while the new folder is being written.
  write_npy(at / "raw/image_feat.npy", torch::full({1, 2}, std::nan("")));
  at.file("raw/image_feat.ids", "x\n");
  EXPECT_EQ(error_of([&] { import_dataset(options, Log()); }).substr(0, 2), "3:");
  EXPECT_EQ(text_of(at / "out/dataset.json"), before);
  EXPECT_EQ(std::distance(fs::directory_iterator(at.path()), fs::directory_iterator()), 2);
  fs::remove_all(at / "out");
  EXPECT_EQ(error_of([&] { import_dataset(options, Log()); }).substr(0, 2), "3:");
  EXPECT_FALSE(fs::exists(at / "out"));
}

TEST(Import, BadInputIsOneLine) {
  TempFolder at;
  const fs::path shop = at.file("shop.tsv", kShop);
  const auto error = [&](const std::function<void(ImportOptions&)>& change) {
    ImportOptions options = options_for(at, {shop});
    change(options);
    const std::string text = error_of([&] { import_dataset(options, Log()); });
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    EXPECT_FALSE(fs::exists(at / "out")) << text;
    return text;
  };
  EXPECT_EQ(
      error([](auto& o) { o.core_users = o.core_items = 5; }),
      "3: the filters (`core` 5,5) leave none of 3 users, 3 items, 6 interactions; lower them");
  EXPECT_EQ(error([](auto& o) { o.split = "temporal-globl"; }),
            "2: no split 'temporal-globl' (did you mean 'temporal-global'?): there are given, "
            "random, leave-one-out, temporal-user, temporal-global, cold-item, cold-user, k-fold");
  EXPECT_EQ(error([](auto& o) { o.split = "given"; }).substr(0, 15), "3: split given:");
  EXPECT_EQ(error([&](auto& o) {
              o.paths = {at.file("b.tsv", "user_id\titem_id\na\tx\nb\ty\n")};
              o.split = "leave-one-out";
            }).substr(0, 22),
            "3: split leave-one-out");
}

TEST(Import, NoTrainRows) {
  TempFolder at;
  ImportOptions options = options_for(at, {at.file("shop.tsv", kShop)});
  options.split = "temporal-global:2,3";
  EXPECT_EQ(error_of([&] { import_dataset(options, Log()); }),
            "3: split temporal-global leaves no train rows: 0 valid, 6 test of 6 interactions");
  options.paths = {at.file("given.tsv", "user_id\titem_id\tsplit\na\tx\ttest\n")};
  options.split = "";
  EXPECT_EQ(error_of([&] { import_dataset(options, Log()); }).substr(0, 34),
            "3: split given leaves no train row");
}

TEST(Import, OutputIsChecked) {
  TempFolder at;
  ImportOptions options = options_for(at, {at.file("shop.tsv", kShop)});
  at.file("out/mine.txt", "keep");
  EXPECT_EQ(error_of([&] { import_dataset(options, Log()); }),
            "2: " + (at / "out").string() +
                " is not empty and no dataset folder: it is left alone; choose another -o");
  options.output = at / "shop.tsv";
  EXPECT_EQ(error_of([&] { import_dataset(options, Log()); }).substr(0, 15), "2: cannot write");
  options.output = at / "shop.tsv/deep";
  EXPECT_EQ(error_of([&] { import_dataset(options, Log()); }).substr(0, 15), "2: cannot write");
  options.output = "";
  EXPECT_EQ(error_of([&] { import_dataset(options, Log()); }),
            "2: import needs an output folder: -o DIR");
  EXPECT_EQ(text_of(at / "out/mine.txt"), "keep");
  if (geteuid() != 0) {
    options.output = "/usr/out";
    EXPECT_EQ(error_of([&] { import_dataset(options, Log()); }).substr(0, 15), "2: cannot write");
  }
}

TEST(Import, TikTokHasTheItemsOfItsFeatures) {
  if (!fs::exists(real_data("tiktok"))) GTEST_SKIP() << why_without("tiktok");
  TempFolder at;
  const Json result = import_dataset(options_for(at, {real_data("tiktok")}), Log());
  // specs/protocol.md section 9.
  EXPECT_EQ(result["counts"]["n_users"], 9308);
  EXPECT_EQ(result["counts"]["n_items"], 6710);
  EXPECT_EQ(result["counts"]["n_train"], 59541);
  EXPECT_EQ(result["counts"]["n_valid"], 3051);
  EXPECT_EQ(result["counts"]["users_in_train"], 9298);
  EXPECT_EQ(result["counts"]["items_in_train"], 6245);
}

TEST(Import, Ml1mLoadsWithItsFeatures) {
  if (!fs::exists(real_data("ml-1m"))) GTEST_SKIP() << why_without("ml-1m");
  TempFolder at;
  import_dataset(options_for(at, {real_data("ml-1m")}), Log());
  const Dataset data = load_dataset(at / "out");
  EXPECT_EQ(data.n_items, 3883);  // the catalogue, of which 3,706 have ratings
  EXPECT_EQ(data.train.n_rows(), 988129);
  EXPECT_TRUE(data.has_order);
  EXPECT_EQ(data.feature("image")->present().sum().item<int64_t>(), 3256);
  EXPECT_EQ(data.feature("text")->present().sum().item<int64_t>(), 3883);
  EXPECT_EQ(train_sha256(data.view()), data.about["train_sha256"]);
}

}  // namespace
}  // namespace tessera
