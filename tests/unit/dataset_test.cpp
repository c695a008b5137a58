#include <gtest/gtest.h>

#include <algorithm>

#include "tessera/base/files.h"
#include "tessera/data/npy.h"
#include "tessera/folder/folder.h"
#include "tessera/folder/load.h"
#include "tests/unit/temp_folder.h"

namespace tessera {
namespace {

/// A folder of two users and three items, written by hand.
struct Shop {
  TempFolder at;
  Json about = {{"format", 1},
                {"name", "shop"},
                {"n_users", 2},
                {"n_items", 3},
                {"n_interactions", 5},
                {"n_seen", 1},
                {"split", {{"kind", "given"}}},
                {"time_unit", "s"},
                {"train_sha256", sha256("a\tx\na\ty\nb\tz\n")}};
  Shop() {
    at.file("d/user_map.tsv", "raw_id\tindex\nb\t0\na\t1\n");
    at.file("d/item_map.tsv", "raw_id\tindex\nx\t0\ny\t1\nz\t2\n");
    at.file("d/interactions.tsv",
            "user_id\titem_id\ttimestamp\tsplit\n"
            "a\ty\t20\ttrain\n"
            "a\tx\t10\ttrain\n"
            "b\tz\t5\ttrain\n"
            "a\tz\t30\tvalid\n"
            "b\tx\t7\ttest\n"
            "b\ty\t6\tseen\n");
    at.file("d/items.tsv", "item_id\tTitle\tis_hidden\nz\tZinc\ttrue\nx\tAxe\t0\n");
    save();
  }
  void save() { write_json(at / "d/dataset.json", about); }
  Dataset load(const DatasetView& view = {}) { return load_dataset(at / "d", view); }
  std::string error(const DatasetView& view = {}) {
    return error_of([&] { load(view); });
  }
  void add_features() {
    write_npy(at / "d/image_feat.npy", torch::tensor({{1.f, 2.f}, {3.f, 4.f}}));
    at.file("d/image_feat.ids", "y\nx\n");
    write_npy(at / "d/pamd_feat.npy", torch::ones({3, 1}));
    at.file("d/pamd_feat.ids", "x\ny\nz\n");
    const auto entry = [&](const std::string& name, int rows, int width) {
      return Json{{"file", name + ".npy"}, {"ids", name + ".ids"},
                  {"rows", rows},          {"width", width},
                  {"dtype", "float32"},    {"sha256", sha256_of_file(at / ("d/" + name + ".npy"))},
                  {"encoder", nullptr},    {"source", nullptr},
                  {"valid_for", nullptr}};
    };
    Json manifest = {{"image", entry("image_feat", 2, 2)}, {"pamd", entry("pamd_feat", 3, 1)}};
    manifest["pamd"]["encoder"] = {{"name", "PAMD"}};
    manifest["pamd"]["valid_for"] = "0000";
    write_json(at / "d/features.json", manifest);
  }
};

std::vector<int32_t> row(const Interactions& rows, int64_t user) {
  const auto span = rows.of(user);
  return {span.begin(), span.end()};
}

using Items = std::vector<int32_t>;

TEST(Dataset, LoadsInTimeOrder) {
  Shop shop;
  const Dataset data = shop.load();
  EXPECT_EQ(data.name, "shop");
  EXPECT_EQ(data.n_users, 2);
  EXPECT_EQ(row(data.train, 0), (Items{2}));
  EXPECT_EQ(row(data.train, 1), (Items{0, 1}));
  EXPECT_EQ(row(data.valid, 1), (Items{2}));
  EXPECT_EQ(row(data.test, 0), (Items{0}));
  EXPECT_EQ(row(data.seen, 0), (Items{1}));
  EXPECT_EQ(data.history.n_rows(), 0);
  EXPECT_EQ(row(data.train_distinct, 1), (Items{0, 1}));
  EXPECT_TRUE(data.has_order);
  EXPECT_EQ(data.user_ids[1], "a");
  EXPECT_EQ(train_sha256(data.view()), shop.about["train_sha256"]);
}

TEST(Dataset, ItemColumnsFollowTheItems) {
  Shop shop;
  const Dataset data = shop.load();
  EXPECT_EQ(data.item_columns.title(0), "Axe");
  EXPECT_EQ(data.item_columns.title(1), "");
  EXPECT_FALSE(data.item_columns.hidden(0));
  EXPECT_FALSE(data.item_columns.hidden(1));
  EXPECT_TRUE(data.item_columns.hidden(2));
  EXPECT_EQ(data.item_columns.find("price"), nullptr);
}

TEST(Dataset, DefaultFeaturesAreThoseNoModelMade) {
  Shop shop;
  shop.add_features();
  const Dataset data = shop.load();
  ASSERT_EQ(data.features.size(), 1u);
  EXPECT_EQ(data.features[0].name, "image");
  EXPECT_TRUE(
      torch::equal(data.features[0].all(), torch::tensor({{3.f, 4.f}, {1.f, 2.f}, {0.f, 0.f}})));
  EXPECT_TRUE(shop.load({.modalities = {"none"}}).features.empty());
  EXPECT_EQ(shop.load({.modalities = {"Visual"}}).features.size(), 1u);
}

TEST(Dataset, UnknownModalityNamesTheNearest) {
  Shop shop;
  EXPECT_EQ(shop.error({.modalities = {"image"}}),
            "2: dataset shop has no modality 'image': it has no features");
  shop.add_features();
  EXPECT_EQ(shop.error({.modalities = {"imge"}}),
            "2: dataset shop has no modality 'imge' (did you mean 'image'?): it has image, pamd");
  EXPECT_EQ(shop.error({.modalities = {"image", "image"}}),
            "2: modality 'image' is asked for twice");
  EXPECT_EQ(shop.error({.modalities = {"none"}, .permute = {"image"}}),
            "2: cannot permute modality 'image': it is not among those chosen");
}

TEST(Dataset, BoundFeaturesOfAnotherSplitAreRefused) {
  Shop shop;
  shop.add_features();
  EXPECT_EQ(shop.error({.modalities = {"pamd"}}),
            "3: feature 'pamd' was made from other train rows than those of this split; make it "
            "again with 'tessera features " +
                (shop.at / "d").string() + " --encoder pamd', or leave it out with `modalities`");
  Json manifest = read_json(shop.at / "d/features.json");
  manifest["pamd"]["valid_for"] = shop.about["train_sha256"];
  write_json(shop.at / "d/features.json", manifest);
  EXPECT_EQ(shop.load({.modalities = {"pamd"}}).features.size(), 1u);
}

TEST(Dataset, PermuteShufflesAmongTheItemsThatHaveRows) {
  Shop shop;
  shop.add_features();
  bool moved = false;
  for (uint64_t seed = 0; seed < 8; ++seed) {
    const Dataset data = shop.load({.permute = {"image"}, .permute_seed = seed});
    EXPECT_FALSE(data.features[0].has(2));
    const torch::Tensor rows = data.features[0].all();
    EXPECT_EQ(rows.sum().item<float>(), 10);
    moved = moved || rows[0][0].item<float>() == 1;
    EXPECT_TRUE(torch::equal(
        rows, shop.load({.permute = {"image"}, .permute_seed = seed}).features[0].all()));
  }
  EXPECT_TRUE(moved);
}

TEST(Dataset, FoldsAreViews) {
  Shop shop;
  shop.at.file("d/interactions.tsv",
               "user_id\titem_id\tsplit\tfold\n"
               "a\tx\ttrain\t0\na\ty\ttrain\t1\na\tz\ttrain\t2\nb\tx\ttrain\t2\nb\ty\ttrain\t0\n"
               "b\tz\tseen\t0\n");
  shop.about["split"] = {{"kind", "k-fold"}, {"folds", 3}};
  shop.save();
  const Dataset data = shop.load({.fold = 2});
  // Test is fold 2, valid fold 0 (3 mod 3), train fold 1.
  EXPECT_EQ(row(data.test, 1), (Items{2}));
  EXPECT_EQ(row(data.test, 0), (Items{0}));
  EXPECT_EQ(row(data.valid, 1), (Items{0}));
  EXPECT_EQ(row(data.train, 1), (Items{1}));
  EXPECT_EQ(row(data.train, 0), (Items{}));
  EXPECT_EQ(row(data.seen, 0), (Items{2}));
  EXPECT_EQ(data.about["train_sha256"], sha256("a\ty\n"));
  EXPECT_EQ(shop.error(), "2: dataset shop is split into 3 folds: choose one with `fold` 0 to 2");
  EXPECT_EQ(shop.error({.fold = 3}),
            "2: dataset shop is split into 3 folds: choose one with `fold` 0 to 2, not 3");
  Shop plain;
  EXPECT_EQ(plain.error({.fold = 0}).substr(0, 10), "2: fold 0:");
}

TEST(Dataset, DamageIsExitThree) {
  const auto broken = [](const std::string& file, const std::string& bytes) {
    Shop shop;
    shop.at.file("d/" + file, bytes);
    return shop.error();
  };
  EXPECT_EQ(broken("dataset.json", "{").substr(0, 2), "3:");
  EXPECT_EQ(broken("dataset.json", "[]").substr(0, 2), "3:");
  EXPECT_EQ(broken("user_map.tsv", "raw_id\tindex\nb\t1\n").substr(0, 2), "3:");
  EXPECT_EQ(broken("user_map.tsv", "raw_id\tindex\nb\t0\nb\t1\n").substr(0, 2), "3:");
  EXPECT_EQ(broken("items.tsv", "item_id\ttitle\nq\tQ\n").substr(0, 2), "3:");
  EXPECT_EQ(broken("features.json", "[1]").substr(0, 2), "3:");
  const std::string head = "user_id\titem_id\ttimestamp\tsplit\n";
  for (const char* rows :
       {"", "a\tx\t1\n", "a\tx\t1\ttrain\textra\n", "a\tq\t1\ttrain\n", "q\tx\t1\ttrain\n",
        "a\tx\t1.5\ttrain\n", "a\tx\t1\tdev\n", "a\tx\t1\ttrain"}) {
    EXPECT_EQ(broken("interactions.tsv", head + rows).substr(0, 2), "3:") << rows;
  }
  EXPECT_EQ(broken("interactions.tsv", "").substr(0, 2), "3:");
  Shop shop;
  shop.about["files"] = {{"interactions.tsv", std::string(64, '0')}};
  shop.save();
  EXPECT_NE(shop.error().find("its sha256 is not the one in dataset.json"), std::string::npos);
  fs::remove(shop.at / "d/interactions.tsv");
  EXPECT_EQ(shop.error().substr(0, 10), "3: no file");
  EXPECT_EQ(error_of([&] { load_dataset(shop.at / "nowhere"); }).substr(0, 20),
            "3: no dataset folder");
  EXPECT_NE(error_of([&] { load_dataset(shop.at.path()); }).find("has no dataset.json"),
            std::string::npos);
}

TEST(Dataset, MadeInMemory) {
  const std::vector<int32_t> users = {0, 0, 1}, items = {2, 0, 2};
  const Dataset data = make_dataset(2, 3, make_interactions(2, users, items));
  EXPECT_EQ(row(data.train, 0), (Items{2, 0}));
  EXPECT_EQ(row(data.train_distinct, 0), (Items{0, 2}));
  EXPECT_EQ(data.valid.n_users(), 2);
  EXPECT_EQ(data.item_ids[2], "2");
  EXPECT_EQ(train_sha256(data.view()), sha256("0\t0\n0\t2\n1\t2\n"));
  EXPECT_EQ(data.feature("image"), nullptr);
}

Feature feature_of(torch::Tensor rows, std::vector<int32_t> row_of_item) {
  Feature out;
  out.name = "image";
  out.rows = MappedArray(std::move(rows));
  out.row_of_item = torch::tensor(row_of_item, torch::kInt32);
  return out;
}

TEST(Missing, PoliciesByHand) {
  // Users: 0 {0, 1, 3}, 1 {0, 3}, 2 {1}. Items 3 and 2 lack a row; 2 has no user.
  const std::vector<int32_t> users = {0, 0, 0, 1, 1, 2}, items = {0, 1, 3, 0, 3, 1};
  const Dataset data = make_dataset(3, 4, make_interactions(3, users, items));
  const Feature feature = feature_of(torch::tensor({{9.f, 0.f}, {0.f, 6.f}}), {0, 1, -1, -1});
  EXPECT_TRUE(torch::equal(filled(data.view(), feature, "zero")[3], torch::tensor({0.f, 0.f})));
  EXPECT_TRUE(torch::equal(filled(data.view(), feature, "mean")[3], torch::tensor({4.5f, 3.f})));
  const torch::Tensor near = filled(data.view(), feature, "neighbours");
  // Item 3 shares users 0 and 1 with item 0 and user 0 with item 1: (2 * (9, 0) + (0, 6)) / 3.
  EXPECT_TRUE(torch::allclose(near[3], torch::tensor({6.f, 2.f})));
  EXPECT_TRUE(torch::equal(near[2], torch::tensor({4.5f, 3.f})));
  EXPECT_TRUE(torch::equal(near[0], torch::tensor({9.f, 0.f})));
  EXPECT_EQ(error_of([&] { filled(data.view(), feature, "error"); }),
            "3: feature 'image': 2 of 4 items have no row and missing = error; give their rows, or "
            "choose missing = zero, mean or neighbours");
  EXPECT_EQ(error_of([&] { filled(data.view(), feature, "neighbors"); }),
            "2: no missing policy 'neighbors' (did you mean 'neighbours'?): wanted zero, mean, "
            "neighbours or error");
}

}  // namespace
}  // namespace tessera
