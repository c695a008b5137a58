#include "tessera/model/bundle.h"

#include <gtest/gtest.h>

#include "tessera/base/files.h"
#include "tessera/data/npy.h"
#include "tessera/serve/recommender.h"
#include "tests/planted_bundle.h"
#include "tests/unit/temp_folder.h"

namespace tessera {
namespace {

/// A bundle on disk that a test may damage.
class BundleTest : public testing::Test {
 protected:
  BundleTest() { planted::save("PlantedFactors", root()); }
  fs::path root() const { return folder_ / "model"; }

  Json about() const { return read_json(root() / "model.json"); }
  void write_about(const Json& about) const { write_json(root() / "model.json", about); }
  /// Replaces a file and makes its hash right, so that the check behind the hash is met.
  void replace(const std::string& name, std::string_view bytes) const {
    write_file(root() / name, bytes);
    rehash(name);
  }
  void rehash(const std::string& name) const {
    Json changed = about();
    changed["files"][name] = sha256_of_file(root() / name);
    write_about(changed);
  }
  /// The message of a load that must end with exit 3 in one line.
  std::string refusal() const {
    try {
      load_bundle(root());
    } catch (const InputError& e) {
      EXPECT_EQ(e.code(), Exit::data) << e.what();
      EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
      return e.what();
    }
    ADD_FAILURE() << "the damaged bundle was loaded";
    return "";
  }
  void expect_refused(const std::string& words) const {
    const std::string message = refusal();
    EXPECT_NE(message.find(words), std::string::npos) << message;
  }

 private:
  TempFolder folder_;
};

TEST_F(BundleTest, ScoresTheSameAfterLoading) {
  for (const char* name : {"PlantedFactors", "PlantedNeighbours", "PlantedPlain"}) {
    const Settings given =
        name == std::string("PlantedFactors") ? Settings{{"use_image", true, "test"}} : Settings{};
    planted::save(name, root(), given);
    const Dataset data = planted::shop();
    const auto before = planted::trained(name, data, given);
    const Bundle bundle = load_bundle(root());
    Queries queries{torch::arange(4, torch::kInt64), {}};
    if (before->abilities().takes_histories) {
      queries.histories = {torch::tensor({0, 1, 2}, torch::kInt32),
                           torch::tensor({0, 1, 1, 3, 3}, torch::kInt64)};
    }
    const torch::NoGradGuard no_grad;
    EXPECT_TRUE(torch::equal(before->score(queries), bundle.model->score(queries))) << name;
  }
}

TEST_F(BundleTest, CarriesIdsTitlesFlagsRowsAndFeatures) {
  const Bundle bundle = load_bundle(root());
  const Dataset& data = *bundle.data;
  EXPECT_EQ(data.name, "shop");
  EXPECT_EQ(data.user_ids.find("bob"), 1);
  EXPECT_EQ(data.item_columns.title(3), "Dates");
  EXPECT_TRUE(data.item_columns.hidden(5));
  EXPECT_FALSE(data.item_columns.hidden(0));
  EXPECT_EQ(std::vector<int32_t>({1, 2}),
            std::vector<int32_t>(data.train.of(1).begin(), data.train.of(1).end()));
  // Train, valid, history and read rows; never test.
  EXPECT_EQ(data.known.items.numel(), 7);
  EXPECT_EQ(std::vector<int32_t>({0, 1, 2}),
            std::vector<int32_t>(data.known.of(0).begin(), data.known.of(0).end()));
  EXPECT_EQ(std::vector<int32_t>({1, 2, 4}),
            std::vector<int32_t>(data.known.of(1).begin(), data.known.of(1).end()));
  ASSERT_NE(data.feature("image"), nullptr);
  EXPECT_FALSE(data.feature("image")->has(3));
  EXPECT_TRUE(torch::equal(data.feature("image")->all(), planted::shop().features[0].all()));
  EXPECT_EQ(bundle.about["settings"]["width"], 2);
  EXPECT_EQ(bundle.about["trained_on"], Json({"train"}));
  EXPECT_EQ(bundle.about["modalities"]["image"]["width"], 2);
  EXPECT_EQ(bundle.about["dataset"]["sha256"], train_sha256(planted::shop().view()));
  const std::string card = read_file(root() / "MODEL_CARD.md");
  EXPECT_NE(card.find("cold items"), std::string::npos);
  EXPECT_NE(card.find("protocol strict"), std::string::npos);
  EXPECT_NE(card.find("| test recall@20 | 0.2500 |"), std::string::npos) << card;
}

TEST_F(BundleTest, WritesTheVectorsOfAFactorModel) {
  EXPECT_TRUE(torch::equal(read_npy(root() / "user_emb.npy")[0], torch::tensor({1.F, 0.F})));
  EXPECT_TRUE(torch::equal(read_npy(root() / "item_emb.npy")[4], torch::tensor({.2F, .8F})));
}

TEST_F(BundleTest, LoadsFromTheRunFolder) {
  EXPECT_EQ(load_bundle(root().parent_path()).data->n_items, 6);
  const TempFolder empty;
  EXPECT_NE(error_of([&] { load_bundle(empty.path()); }).find("is no bundle"), std::string::npos);
  EXPECT_NE(error_of([&] { load_bundle(empty / "x"); }).find("no folder"), std::string::npos);
}

TEST_F(BundleTest, SavesAgainWhatItLoaded) {
  Bundle bundle = load_bundle(root());
  const ModelInfo& info = find_model("PlantedFactors");
  const fs::path copy = root().parent_path() / "copy";
  save_bundle(copy, *bundle.model, *bundle.data, info, resolve_settings(info, {}), {});
  for (const auto& [name, hash] : about()["files"].items()) {
    EXPECT_EQ(read_file(copy / name), read_file(root() / name)) << name;
  }
}

TEST_F(BundleTest, IgnoresUnknownFieldsSettingsAndFiles) {
  Json changed = about();
  changed["price_list"] = {{"currency", "EUR"}};
  changed["modalities"]["image"]["colour"] = true;
  changed["settings"]["of_tomorrow"] = 7;
  write_about(changed);
  write_file(root() / "index.hnsw", "a cache");
  std::string warned;
  load_bundle(root(), Log([&](Level, const std::string& text) { warned += text; }));
  EXPECT_NE(warned.find("of_tomorrow"), std::string::npos);
}

TEST_F(BundleTest, RefusesEveryFileCutShortChangedOrMissing) {
  const Json files = about()["files"];
  for (const auto& [name, hash] : files.items()) {
    const std::string bytes = read_file(root() / name);
    std::string changed = bytes;
    changed[changed.size() / 2] ^= 1;
    for (const std::string& damaged : {bytes.substr(0, bytes.size() / 2), changed}) {
      write_file(root() / name, damaged);
      expect_refused(name + " is damaged");
    }
    fs::remove(root() / name);
    expect_refused(name + " is missing");
    write_file(root() / name, bytes);
  }
  EXPECT_NO_THROW(load_bundle(root()));
}

// Ranking by stored vectors does not read features: only those to compare by are hashed.
TEST_F(BundleTest, AnswersLeaveFeaturesUnread) {
  Recommender whole(load_bundle(root()));
  std::string bytes = read_file(root() / "image_feat.npy");
  bytes.back() ^= 1;
  write_file(root() / "image_feat.npy", bytes);
  Recommender quick(load_bundle(root(), {}, {.answers = true}));
  const Ask everybody{.n = 6, .filter_seen = false, .all_users = true};
  const auto want = whole.recommend(everybody), found = quick.recommend(everybody);
  ASSERT_EQ(found.size(), 4U);
  for (size_t u = 0; u < found.size(); ++u) {
    EXPECT_EQ(found[u].via, want[u].via);
    ASSERT_EQ(found[u].items.size(), want[u].items.size());
    for (size_t r = 0; r < found[u].items.size(); ++r) {
      EXPECT_EQ(found[u].items[r].item, want[u].items[r].item);
      EXPECT_EQ(found[u].items[r].score, want[u].items[r].score);
    }
  }
  EXPECT_EQ(quick.similar("apple", 3).size(), 3U);
  EXPECT_NE(error_of([&] { quick.similar("apple", 3, "image"); }).find("without the rows of"),
            std::string::npos);
  EXPECT_NE(error_of([&] {
              load_bundle(root(), {}, {.answers = true, .compare_by = {"image"}});
            }).find("image_feat.npy is damaged"),
            std::string::npos);
  expect_refused("is damaged");
  // A bundle that does not say what its model can do is loaded whole.
  Json older = about();
  older.erase("abilities");
  write_about(older);
  EXPECT_NE(error_of([&] {
              load_bundle(root(), {}, {.answers = true});
            }).find("image_feat.npy is damaged"),
            std::string::npos);
}

TEST_F(BundleTest, AnswersAreRefusedWithDamagedVectors) {
  const Json whole = about();
  auto refused = [&] { return error_of([&] { load_bundle(root(), {}, {.answers = true}); }); };
  for (const char* name : {"user_emb.npy", "item_emb.npy", "seen_items.npy", "image_feat.ids",
                           "weights.safetensors"}) {
    const std::string bytes = read_file(root() / name);
    std::string changed = bytes;
    changed.back() ^= 1;
    write_file(root() / name, changed);
    EXPECT_NE(refused().find(name + std::string(" is damaged")), std::string::npos);
    write_file(root() / name, bytes);
  }
  write_npy(root() / "user_emb.npy", torch::zeros({4, 3}));
  rehash("user_emb.npy");
  EXPECT_NE(refused().find("user_emb.npy has width 3, item_emb.npy 2"), std::string::npos);
  write_npy(root() / "user_emb.npy", torch::zeros({4, 2}, torch::kFloat64));
  rehash("user_emb.npy");
  EXPECT_NE(refused().find("wanted aligned float32, found float64"), std::string::npos);
  write_npy(root() / "user_emb.npy", torch::zeros({4, 0}));
  rehash("user_emb.npy");
  EXPECT_NE(refused().find("user_emb.npy"), std::string::npos);
  Json changed = whole;
  changed["abilities"]["takes_histories"] = "no";
  write_about(changed);
  EXPECT_NE(refused().find("'takes_histories' must be"), std::string::npos);
}

TEST_F(BundleTest, RefusesAForeignFormat) {
  Json changed = about();
  changed["format"] = 2;
  write_about(changed);
  expect_refused("format 2, this Tessera 1.0.0 reads format 1");
  changed["format"] = "1";
  write_about(changed);
  expect_refused("'format' must be an integer, found \"1\"");
  changed.erase("format");
  write_about(changed);
  expect_refused("'format' is missing");
}

TEST_F(BundleTest, RefusesATruncatedDescription) {
  const std::string bytes = read_file(root() / "model.json");
  write_file(root() / "model.json", bytes.substr(0, bytes.size() / 2));
  expect_refused("not valid JSON");
  write_file(root() / "model.json", "[1]");
  expect_refused("wanted an object with 'format', found array");
}

TEST_F(BundleTest, RefusesWrongShapes) {
  const Json whole = about();
  auto with = [&](const std::string& name, const torch::Tensor& tensor) {
    const std::string bytes = read_file(root() / name);
    write_npy(root() / name, tensor);
    rehash(name);
    const std::string message = refusal();
    write_file(root() / name, bytes);
    write_about(whole);
    return message;
  };
  EXPECT_NE(with("train_indptr.npy", torch::zeros({4}, torch::kInt64)).find("wanted int64 [5]"),
            std::string::npos);
  EXPECT_NE(with("seen_indptr.npy", torch::tensor({0, 9, 1, 2, 7}, torch::kInt64))
                .find("does not describe the 7 rows"),
            std::string::npos);
  EXPECT_NE(with("train_items.npy", torch::tensor({0, 1, 6, 1}, torch::kInt32))
                .find("row 2 names item 6, there are 6 items"),
            std::string::npos);
  EXPECT_NE(with("item_emb.npy", torch::zeros({5, 2})).find("has 5 rows, wanted 6"),
            std::string::npos);
  EXPECT_NE(with("image_feat.npy", torch::zeros({5, 3})).find("is 5 x 3"), std::string::npos);
}

TEST_F(BundleTest, RefusesMapsThatDoNotCount) {
  const std::string head = "raw_id\tindex\n";
  replace("user_map.tsv", head + "ann\t0\nbob\t1\ncat\t2\n");
  expect_refused("has 3 ids, model.json says 4");
  replace("user_map.tsv", head + "ann\t0\nbob\t2\n");
  expect_refused("wanted index 1, found '2'");
  replace("user_map.tsv", head + "ann\t0\nann\t1\n");
  expect_refused("'ann' stands twice");
}

TEST_F(BundleTest, RefusesItemsThatDoNotFit) {
  replace("items.tsv", "");
  expect_refused("is empty");
  replace("items.tsv", "item_id\ttitle\napple\n");
  expect_refused("items.tsv:2");
  replace("items.tsv", "item_id\ttitle\nplum\tPlum\n");
  expect_refused("'plum' is not in item_map.tsv");
}

TEST_F(BundleTest, RefusesSettingsThatTheWeightsDoNotBear) {
  auto with = [&](const Json& width) {
    Json changed = about();
    changed["settings"]["width"] = width;
    write_about(changed);
    return refusal();
  };
  EXPECT_NE(with(3).find("is [4, 2], wanted [4, 3]"), std::string::npos);
  EXPECT_NE(with(2.7).find("expected a value like 2, got 2.7"), std::string::npos);
  EXPECT_NE(with(0).find("must be at least 1"), std::string::npos);
  EXPECT_NE(with(int64_t{1} << 50).find("no weight of the bundle is that large"),
            std::string::npos);
}

TEST_F(BundleTest, RefusesAnUnknownModelWithTheNearest) {
  Json changed = about();
  changed["model"] = "PlantedFactor";
  write_about(changed);
  expect_refused("did you mean 'PlantedFactors'?");
}

TEST_F(BundleTest, RefusesNeighboursThatAreNoItems) {
  planted::save("ItemKNN", root());
  TensorMap weights = read_safetensors(root() / "weights.safetensors");
  weights["neighbour_items"].fill_(6);
  write_safetensors(root() / "weights.safetensors", weights);
  rehash("weights.safetensors");
  expect_refused("ItemKNN: the stored neighbours");
}

TEST_F(BundleTest, RefusesPathsOutOfTheFolder) {
  Json changed = about();
  changed["files"]["../secret"] = "0";
  write_about(changed);
  expect_refused("wanted a file of the bundle's own folder");
  changed = about();
  changed["files"].erase("../secret");
  changed["modalities"]["image"]["manifest"]["file"] = "/etc/passwd";
  write_about(changed);
  expect_refused("'file' must be image_feat.npy");
}

TEST(JsonGet, NamesWhatWasFound) {
  const Json object = {{"n", 2.7}, {"big", 18446744073709551615ULL}, {"none", nullptr}};
  EXPECT_EQ(json_get<double>(object, "n", "f.json"), 2.7);
  EXPECT_EQ(json_get<int64_t>(object, "absent", "f.json", 5), 5);
  EXPECT_EQ(json_get<std::string>(object, "none", "f.json", std::string("x")), "x");
  EXPECT_THROW(json_get<int64_t>(object, "n", "f.json"), InputError);
  EXPECT_THROW(json_get<int64_t>(object, "big", "f.json"), InputError);
  EXPECT_THROW(json_get<bool>(object, "none", "f.json"), InputError);
  EXPECT_THROW(json_get<Json>(object, "n", "f.json"), InputError);
}

}  // namespace
}  // namespace tessera
