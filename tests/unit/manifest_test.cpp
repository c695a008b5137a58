#include "tessera/folder/manifest.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cmath>
#include <cstdlib>
#include <numeric>

#include "tessera/data/npy.h"
#include "tessera/data/safetensors.h"
#include "tests/unit/temp_folder.h"

namespace tessera {
namespace {

using Kind = FeatureSource::Kind;

Vocabulary vocabulary(const std::vector<std::string>& ids) {
  Vocabulary out;
  for (const auto& id : ids) out.add(id);
  return out;
}

/// One line with exit 3 that holds `words`.
testing::AssertionResult is_data_error(const std::string& found, const std::string& words) {
  if (found.starts_with("3: ") && found.find(words) != std::string::npos &&
      found.find('\n') == std::string::npos) {
    return testing::AssertionSuccess();
  }
  return testing::AssertionFailure() << "wanted '" << words << "', found '" << found << "'";
}

/// Imports one source into a fresh folder and opens it again.
struct Imported {
  Json entry, report;
  Feature feature;
};
Imported import_one(const TempFolder& folder, const FeatureSource& source, const Vocabulary& items,
                    bool dense = false) {
  Imported out;
  const auto place = folder / "dataset";
  std::filesystem::create_directories(place);
  out.entry = import_feature(source, place, items, dense, out.report);
  out.feature = open_feature(place, source.modality, out.entry, items, true);
  return out;
}

TEST(Modality, NamesAreWordsWithSynonyms) {
  EXPECT_EQ(canonical_modality("Visual"), "image");
  EXPECT_EQ(canonical_modality("textual"), "text");
  EXPECT_EQ(canonical_modality("acoustic"), "audio");
  EXPECT_EQ(canonical_modality("my_own2"), "my_own2");
  for (const char* bad : {"", "2d", "a b", "a-b", "_x", "\xc3\xa9", "a/b"}) {
    EXPECT_TRUE(error_of([&] { canonical_modality(bad); }).starts_with("2: '")) << bad;
  }
}

TEST(FindFeatures, TakesFilesBesideAndInFeatures) {
  const TempFolder folder;
  write_npy(folder / "visual_feat.npy", torch::ones({2, 3}));
  folder.file("visual_feat.ids", "a\nb\n");
  folder.file("notes.npy", "");
  folder.file("interactions.tsv", "");
  folder.file("features/text_feat.tsv", "a\t1\n");
  folder.file("features/audio_feat/a.npy", "");
  folder.file("other/motion_feat.npy", "");
  const auto found = find_features(folder.path());
  ASSERT_EQ(found.size(), 3u);
  EXPECT_EQ(found[0].modality, "audio");
  EXPECT_EQ(found[0].kind, Kind::folder);
  EXPECT_EQ(found[1].modality, "image");
  EXPECT_EQ(found[1].kind, Kind::npy);
  EXPECT_EQ(found[1].ids_path, folder / "visual_feat.ids");
  EXPECT_EQ(found[2].modality, "text");
  EXPECT_EQ(found[2].kind, Kind::table);

  folder.file("image_features_Baby.b", "");
  EXPECT_TRUE(
      is_data_error(error_of([&] { find_features(folder.path()); }), "two files for image"));
  std::filesystem::remove(folder / "visual_feat.npy");
  EXPECT_EQ(find_features(folder.path())[1].kind, Kind::amazon);
  folder.file("My-thing_feat.npy", "");
  EXPECT_TRUE(
      is_data_error(error_of([&] { find_features(folder.path()); }), "'My-thing' is no name"));
}

TEST(FeatureArgument, NamesModalityFileAndIds) {
  const TempFolder folder;
  write_npy(folder / "v.npy", torch::ones({1, 1}));
  folder.file("names.txt", "a\n");
  folder.file("with,comma.csv", "a,1\n");
  const std::string v = (folder / "v.npy").string();
  FeatureSource source = parse_feature_argument("visual=" + v);
  EXPECT_EQ(source.modality, "image");
  EXPECT_EQ(source.kind, Kind::npy);
  EXPECT_TRUE(source.ids_path.empty());
  EXPECT_EQ(parse_feature_argument("x=" + v + "," + (folder / "names.txt").string()).ids_path,
            folder / "names.txt");
  EXPECT_EQ(parse_feature_argument("x=" + (folder / "with,comma.csv").string()).kind, Kind::table);
  EXPECT_EQ(parse_feature_argument("x=" + folder.path().string()).kind, Kind::folder);
  folder.file("v.ids", "a\n");
  EXPECT_EQ(parse_feature_argument("x=" + v).ids_path, folder / "v.ids");

  for (const std::string& bad :
       std::vector<std::string>{"image", "image=", "=" + v, "a b=" + v, "x=" + v + ","}) {
    EXPECT_TRUE(error_of([&] { parse_feature_argument(bad); }).starts_with("2: ")) << bad;
  }
  EXPECT_TRUE(is_data_error(error_of([&] { parse_feature_argument("image=/no/such.npy"); }),
                            "`feature` image: no file /no/such.npy"));
  EXPECT_TRUE(is_data_error(
      error_of([&] { parse_feature_argument("image=" + (folder / "names.txt").string()); }),
      "no feature file; wanted .npy"));
}

TEST(ImportFeature, MatchesAnyOrderAndSubset) {
  const TempFolder folder;
  const auto values = torch::tensor({{1.0, 2.0}, {3.0, 4.0}, {5.0, 0.1}});
  const Vocabulary items = vocabulary({"a", "b", "c", "d"});
  folder.file("image_feat.ids", "c\r\nzz\r\na");
  for (const auto dtype : {torch::kHalf, torch::kFloat, torch::kDouble}) {
    write_npy(folder / "image_feat.npy", values.to(dtype));
    const auto source = find_features(folder.path()).at(0);
    const FeatureInfo info = describe_feature(source);
    EXPECT_EQ(info.n_rows, 3);
    EXPECT_EQ(info.width, 2);
    EXPECT_TRUE(info.has_ids);
    EXPECT_EQ(info.ids.ids(), (std::vector<std::string>{"c", "zz", "a"}));
    const Imported got = import_one(folder, source, items);
    EXPECT_EQ(got.report["matched"], 2);
    EXPECT_EQ(got.report["missing"], 2);
    EXPECT_EQ(got.report["unknown"], 1);
    const auto kept = dtype == torch::kDouble ? torch::kFloat : dtype;
    EXPECT_EQ(got.feature.rows.dtype(), kept);
    EXPECT_EQ(got.entry["dtype"], kept == torch::kHalf ? "float16" : "float32");
    const auto wanted = torch::zeros({4, 2});
    wanted[0] = values[2].to(kept).to(torch::kFloat);
    wanted[2] = values[0].to(kept).to(torch::kFloat);
    EXPECT_TRUE(torch::equal(got.feature.all(), wanted));
    EXPECT_EQ(got.entry["sha256"], sha256_of_file(folder / "dataset/image_feat.npy"));
    EXPECT_EQ(read_file(folder / "dataset/image_feat.ids"), "c\nzz\na\n");
    EXPECT_EQ(got.entry["source"], (Json{{"kind", "npy"}, {"file", "image_feat.npy"}}));
    EXPECT_TRUE(got.entry["encoder"].is_null() && got.entry["valid_for"].is_null());
    if (dtype != torch::kDouble) {
      EXPECT_EQ(read_file(folder / "dataset/image_feat.npy"), read_file(folder / "image_feat.npy"));
    }
  }
}

TEST(ImportFeature, WithoutIdsRowIsItemId) {
  const TempFolder folder;
  write_safetensors(folder / "text_feat.safetensors",
                    {{"x", torch::arange(4).view({4, 1}).to(torch::kHalf)}});
  const auto source = find_features(folder.path()).at(0);
  EXPECT_FALSE(describe_feature(source).has_ids);
  const Vocabulary items = vocabulary({"3", "0", "7"});  // ids need not be indices after a filter
  Json report;
  EXPECT_TRUE(
      is_data_error(error_of([&] { import_feature(source, folder.path(), items, false, report); }),
                    "4 rows without ids; give "));
  const Imported got = import_one(folder, source, items, true);
  EXPECT_TRUE(got.entry["ids"].is_null());
  EXPECT_EQ(got.entry["file"], "text_feat.npy");
  EXPECT_EQ(got.report["ids"], "row r is item id r");
  EXPECT_EQ(got.report["missing"], 1);
  EXPECT_EQ(got.report["unknown"], 2);
  EXPECT_TRUE(torch::equal(got.feature.all(), torch::tensor({{3.0f}, {0.0f}, {0.0f}})));
  EXPECT_TRUE(torch::equal(got.feature.present(), torch::tensor({true, true, false})));
}

TEST(ImportFeature, ReadsTextTables) {
  const TempFolder folder;
  const Vocabulary items = vocabulary({"a", "b,\"c\"", "d"});
  const auto wanted = torch::tensor({{1.5f, -2.0f}, {0.25f, 1e-3f}, {0.0f, 0.0f}});
  for (const auto& [name, text] : std::vector<std::pair<std::string, std::string>>{
           {"x_feat.csv", "a,1.5,-2\n\"b,\"\"c\"\"\",+.25,1e-3\nd,0,1e-60\n"},
           {"x_feat.csv",
            "\xef\xbb\xbfitem,f0,f1\r\na,1.5, -2\r\n\"b,\"\"c\"\"\",.25,0.001\r\nd,0,0"},
           {"x_feat.csv", "a;1.5;-2\nb,\"c\";.25;1e-3\nd;0;0\n\n"},
           {"x_feat.tsv", "a\t1.5\t-2\nb,\"c\"\t.25\t1e-3\nd\t0\t0\n"}}) {
    const TempFolder own;
    own.file(name, text);
    const Imported got = import_one(own, find_features(own.path()).at(0), items);
    EXPECT_TRUE(torch::equal(got.feature.all(), wanted)) << text;
    EXPECT_EQ(got.report["ids"], "in the file");
  }
  const auto error = [&](const std::string& text) {
    return error_of([&] {
      const TempFolder own;
      own.file("x_feat.csv", text);
      import_one(own, find_features(own.path()).at(0), items);
    });
  };
  EXPECT_TRUE(is_data_error(error(""), "empty file"));
  EXPECT_TRUE(is_data_error(error("item,f0\n"), "no rows"));
  EXPECT_TRUE(is_data_error(error("a\n"), "x_feat.csv:1: no number after the id"));
  EXPECT_TRUE(
      is_data_error(error("a,1,2\nd,1\n"), "x_feat.csv:2: 1 numbers, the rows before have 2"));
  EXPECT_TRUE(is_data_error(error("a,1\nd,x\n"), "x_feat.csv:2: column 2: 'x' is no number"));
  EXPECT_TRUE(is_data_error(error("a,1\nd,\n"), "x_feat.csv:2"));
  EXPECT_TRUE(is_data_error(error("a,1\na,2\n"), "id 'a' is there twice, first for row 0"));
  EXPECT_TRUE(is_data_error(error("a,1\n,2\n"), "x_feat.csv:2: empty feature id"));
  EXPECT_TRUE(
      is_data_error(error("a,1\nd,1e39\n"), "row 1, column 0 (from 0; id 'd') is infinite"));
  EXPECT_TRUE(is_data_error(error("a,1\nd,nan\n"), "id 'd') is NaN"));
  EXPECT_TRUE(is_data_error(error("\xff,1\n"), "id '\\xff' is not UTF-8"));
}

TEST(ImportFeature, ReadsAFolderOfRows) {
  const TempFolder folder;
  const auto put = [&](const std::string& name, const torch::Tensor& row) {
    std::filesystem::create_directories(folder / "image_feat");
    write_npy(folder / "image_feat" / name, row);
  };
  put("B00.v2.jpg.npy", torch::tensor({1.0, 2.0}));  // double, one dimension
  put("x.npy", torch::tensor({{3.0f, 4.0f}}).to(torch::kHalf));
  folder.file("image_feat/readme.txt", "");
  const auto source = find_features(folder.path()).at(0);
  const Imported got = import_one(folder, source, vocabulary({"x", "B00.v2.jpg", "B00"}));
  EXPECT_TRUE(
      torch::equal(got.feature.all(), torch::tensor({{3.0f, 4.0f}, {1.0f, 2.0f}, {0.0f, 0.0f}})));
  EXPECT_EQ(got.report["ignored_files"], 1);
  put("y.npy", torch::ones({3}));
  EXPECT_TRUE(is_data_error(error_of([&] { describe_feature(source); }),
                            "y.npy: 3 numbers, the files before have 2"));
  put("y.npy", torch::ones({2, 2}));
  EXPECT_TRUE(is_data_error(error_of([&] { describe_feature(source); }), "shape [2, 2] of Float"));
  put("y.npy", torch::ones({2}, torch::kInt));
  EXPECT_TRUE(is_data_error(error_of([&] { describe_feature(source); }), "of Int"));
  put("y.npy", torch::empty({0, 2}));
  EXPECT_TRUE(is_data_error(error_of([&] { describe_feature(source); }), "shape [0, 2]"));
  std::filesystem::remove_all(folder / "image_feat");
  std::filesystem::create_directory(folder / "image_feat");
  EXPECT_TRUE(is_data_error(error_of([&] { describe_feature(source); }), "no .npy file"));
}

std::string amazon_record(const std::string& id, float first) {
  std::vector<float> row(4096, 0.5f);
  row[0] = first;
  return id + std::string(reinterpret_cast<const char*>(row.data()), 4 * 4096);
}

TEST(ImportFeature, ReadsTheAmazonBinary) {
  const TempFolder folder;
  const auto path = folder.file("image_features_Baby.b",
                                amazon_record("B000000001", 1) + amazon_record("B000000002", 2));
  const auto source = find_features(folder.path()).at(0);
  EXPECT_EQ(source.modality, "image");
  const Imported got = import_one(folder, source, vocabulary({"B000000002"}));
  EXPECT_EQ(got.feature.width(), 4096);
  EXPECT_EQ(got.feature.all()[0][0].item<float>(), 2.0f);
  EXPECT_EQ(got.feature.all()[0][4095].item<float>(), 0.5f);
  EXPECT_EQ(got.report["unknown"], 1);
  std::filesystem::resize_file(path, 2 * 16394 - 1);
  EXPECT_TRUE(is_data_error(error_of([&] { describe_feature(source); }),
                            "32787 bytes, wanted records of 16394"));
  folder.file("image_features_Baby.b",
              amazon_record("B000000001", 1) + amazon_record("B000000001", 2));
  EXPECT_TRUE(is_data_error(error_of([&] { describe_feature(source); }),
                            "record 1: id 'B000000001' is there twice"));
  folder.file("image_features_Baby.b",
              amazon_record("B000000001", 1) + amazon_record("B000000002", NAN));
  EXPECT_TRUE(
      is_data_error(error_of([&] { import_one(folder, source, vocabulary({"B000000001"})); }),
                    "row 1, column 0 (from 0; id 'B000000002') is NaN"));
}

TEST(ImportFeature, RefusesWhatDoesNotFit) {
  const TempFolder folder;
  const Vocabulary items = vocabulary({"a", "b"});
  const auto error = [&](const torch::Tensor& rows, const std::string& ids) {
    write_npy(folder / "image_feat.npy", rows);
    folder.file("image_feat.ids", ids);
    return error_of([&] { import_one(folder, find_features(folder.path()).at(0), items); });
  };
  const auto two = torch::ones({2, 3});
  EXPECT_TRUE(is_data_error(error(two, "a\n"), "has 1 ids"));
  EXPECT_TRUE(
      is_data_error(error(two, "a\nb\nc\n"), "image_feat.npy has 2 rows; wanted one id a row"));
  EXPECT_TRUE(is_data_error(error(two, "a\na\n"),
                            "image_feat.ids:2: id 'a' is there twice, first for row 0"));
  EXPECT_TRUE(is_data_error(error(two, "a\n\n"), "image_feat.ids:2: empty feature id"));
  EXPECT_TRUE(is_data_error(error(two, "a\nb\tc\n"), "contains a tab"));
  EXPECT_TRUE(is_data_error(error(two, "a\n\xe9\n"), "is not UTF-8"));
  EXPECT_TRUE(is_data_error(
      error(two, "x\ny\n"),
      "none of its 2 rows belongs to an item (its first id is 'x', the first item 'a')"));
  EXPECT_TRUE(is_data_error(error(torch::ones({2, 0}), "a\nb\n"), "width 0"));
  auto bad = torch::ones({2, 3});
  bad[1][2] = NAN;
  EXPECT_TRUE(is_data_error(error(bad, "a\nb\n"), "row 1, column 2 (from 0; id 'b') is NaN"));
  bad[1][2] = INFINITY;
  EXPECT_TRUE(is_data_error(error(bad.to(torch::kHalf), "a\nb\n"), "is infinite"));
  bad = torch::full({2, 3}, 1e300, torch::kDouble);
  EXPECT_TRUE(is_data_error(error(bad, "a\nb\n"), "is infinite as float32"));
  EXPECT_FALSE(std::filesystem::exists(folder / "dataset/image_feat.npy"));
}

TEST(ImportFeature, KeepsWhatAManifestBesideSays) {
  const TempFolder folder;
  write_npy(folder / "image_feat.npy", torch::ones({1, 2}));
  folder.file("image_feat.ids", "a\n");
  Json entry = {{"file", "image_feat.npy"},
                {"rows", 1},
                {"width", 2},
                {"sha256", sha256_of_file(folder / "image_feat.npy")},
                {"encoder", {{"name", "PAMD"}}},
                {"source", {{"kind", "images"}, {"read", 1}}},
                {"valid_for", "0123"}};
  write_json(folder / "features.json", {{"image", entry}});
  const auto source = find_features(folder.path()).at(0);
  const Imported got = import_one(folder, source, vocabulary({"a"}));
  EXPECT_EQ(got.entry["encoder"], entry["encoder"]);
  EXPECT_EQ(got.entry["source"], entry["source"]);
  EXPECT_EQ(got.entry["valid_for"], "0123");
  EXPECT_TRUE(made_by_model(got.entry));
  write_npy(folder / "image_feat.npy", torch::zeros({1, 2}));
  EXPECT_TRUE(is_data_error(error_of([&] { describe_feature(source); }),
                            "not the file that features.json"));
}

TEST(ImportRows, WritesRowsInMemory) {
  const TempFolder folder;
  const Vocabulary items = vocabulary({"a", "b"});
  Json report;
  const Json entry =
      import_rows("tags", torch::tensor({{1.0f}, {2.0f}}), vocabulary({"b", "c"}),
                  {{"kind", "item columns"}}, folder.path(), items, report, {{"name", "R2MR"}});
  EXPECT_EQ(report["matched"], 1);
  EXPECT_TRUE(made_by_model(entry));
  const Feature feature = open_feature(folder.path(), "tags", entry, items, true);
  EXPECT_TRUE(torch::equal(feature.all(), torch::tensor({{0.0f}, {1.0f}})));
}

TEST(Manifest, RefusesEntriesThatMislead) {
  const std::string good = R"({"file":"image_feat.npy","ids":null,"rows":1,"width":2})";
  EXPECT_EQ(parse_manifest("{\"image\":" + good + "}", "f").size(), 1u);
  EXPECT_TRUE(read_manifest("/no/such/folder").empty());
  const auto error = [](const std::string& text) {
    return error_of([&] { parse_manifest(text, "features.json"); });
  };
  EXPECT_TRUE(is_data_error(error("[]"), "wanted an object"));
  EXPECT_TRUE(is_data_error(error("{"), "not valid JSON"));
  EXPECT_TRUE(
      is_data_error(error("{\"Image\":" + good + "}"), "'Image': wanted a lower-case word"));
  EXPECT_TRUE(is_data_error(error(R"({"image":3})"), "wanted an object"));
  for (const std::string file : {"\"../x.npy\"", "\"/x.npy\"", "\"\"", "\"..\"", "3"}) {
    EXPECT_TRUE(
        is_data_error(error("{\"image\":{\"file\":" + file + "}}"), "'file' must name a file"));
  }
  EXPECT_TRUE(is_data_error(error(R"({"image":{"file":"a","ids":"../b"}})"), "'ids' must name"));
  EXPECT_TRUE(is_data_error(error(R"({"image":{"file":"a","rows":1.5}})"), "'rows' must be"));
  EXPECT_TRUE(is_data_error(error(R"({"image":{"file":"a","rows":1}})"), "'width' must be"));
  EXPECT_TRUE(
      is_data_error(error(R"({"image":{"file":"a","rows":1,"width":1,"sha256":4}})"), "'sha256'"));
  EXPECT_TRUE(is_data_error(error(R"({"image":{"file":"a","rows":1,"width":1,"encoder":"x"}})"),
                            "'encoder'"));
  EXPECT_TRUE(is_data_error(error(R"({"image":{"file":"a","rows":1,"width":1,"valid_for":{}}})"),
                            "'valid_for'"));
}

TEST(OpenFeature, ChecksShapeAndHash) {
  const TempFolder folder;
  const Vocabulary items = vocabulary({"a", "b"});
  Json report;
  const Json entry =
      import_rows("image", torch::ones({2, 3}), items, nullptr, folder.path(), items, report);
  const auto error = [&](const char* key, const Json& value, bool verify = false) {
    Json other = entry;
    other[key] = value;
    return error_of([&] { open_feature(folder.path(), "image", other, items, verify); });
  };
  EXPECT_TRUE(is_data_error(error("rows", 3), "2 x 3 of float32, features.json says 3 x 3"));
  EXPECT_TRUE(is_data_error(error("width", 4), "features.json says 2 x 4"));
  EXPECT_TRUE(is_data_error(error("dtype", "float16"), "of float16"));
  EXPECT_TRUE(is_data_error(error("file", "gone.npy"), "no file "));
  EXPECT_EQ(error("sha256", "00"), "no error");
  EXPECT_TRUE(is_data_error(error("sha256", "00", true), "features.json says 00"));
  EXPECT_TRUE(is_data_error(error("ids_sha256", "00", true), "image_feat.ids: its sha256 is "));
}

TEST(PermuteFeature, ShufflesAmongItemsThatHaveOne) {
  Feature feature;
  feature.name = "image";
  feature.rows = MappedArray(torch::arange(60).view({60, 1}).to(torch::kFloat));
  feature.row_of_item = torch::full({100}, -1, torch::kInt);
  for (int i = 0; i < 50; ++i) feature.row_of_item[2 * i] = i;
  const torch::Tensor before = feature.row_of_item.clone();
  Feature same = feature, other = feature, text = feature;
  text.name = "text";
  permute_feature(feature, Random(999));
  permute_feature(same, Random(999));
  permute_feature(other, Random(1000));
  permute_feature(text, Random(999));
  EXPECT_TRUE(torch::equal(feature.row_of_item, same.row_of_item));
  EXPECT_FALSE(torch::equal(feature.row_of_item, other.row_of_item));
  EXPECT_FALSE(torch::equal(feature.row_of_item, text.row_of_item));
  EXPECT_TRUE(torch::equal(feature.present(), before.ge(0)));
  const auto sorted = [](const torch::Tensor& t) { return std::get<0>(t.sort()); };
  EXPECT_TRUE(torch::equal(sorted(feature.row_of_item), sorted(before)));
  EXPECT_LT(feature.row_of_item.eq(before).sum().item<int64_t>(), 50 + 10);
}

TEST(ShownModality, IsThatOfTheFeatureItWasMadeOf) {
  Feature feature;
  feature.name = "image_r2mr";
  EXPECT_EQ(shown_modality(feature), "image_r2mr");
  feature.manifest = {{"encoder", {{"made_by", "model"}, {"modality", "image"}}}};
  EXPECT_EQ(shown_modality(feature), "image");
  feature.manifest = {{"encoder", {{"name", "R2MR"}, {"modality", "image"}}}};
  EXPECT_EQ(shown_modality(feature), "image");
  feature.manifest = {{"encoder", {{"name", "mobilenet-v1"}, {"modality", "image"}}}};
  EXPECT_EQ(shown_modality(feature), "image_r2mr");
  feature.manifest = {{"encoder", {{"made_by", "model"}, {"modality", 3}}}};
  EXPECT_EQ(shown_modality(feature), "image_r2mr");
}

TEST(MadeByModel, ReadsTheEncoder) {
  EXPECT_TRUE(made_by_model({{"encoder", {{"name", "R2MR"}}}}));
  EXPECT_TRUE(made_by_model({{"encoder", {{"name", "mine"}, {"made_by", "model"}}}}));
  EXPECT_FALSE(made_by_model({{"encoder", {{"name", "mobilenet-v1"}}}}));
  EXPECT_FALSE(made_by_model({{"encoder", nullptr}}));
  EXPECT_FALSE(made_by_model(Json::object()));
}

TEST(RealFeatures, Import) {  // counts: the README of the data
  const char* place = std::getenv("TESSERA_DATA");
  const std::filesystem::path data = place ? place : "data";
  if (!std::filesystem::exists(data / "ml-1m/features/text_feat.npy")) {
    GTEST_SKIP() << "no " << (data / "ml-1m/features").string() << ": set TESSERA_DATA";
  }
  const auto found = find_features(data / "ml-1m");
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].modality, "image");
  const TempFolder folder;
  const Vocabulary movies = describe_feature(found[1]).ids;
  EXPECT_EQ(movies.size(), 3883);
  const Imported image = import_one(folder, found[0], movies);
  EXPECT_EQ(image.report["matched"], 3256);
  EXPECT_EQ(image.report["missing"], 627);
  EXPECT_EQ(image.report["unknown"], 0);
  EXPECT_EQ(image.feature.present().sum().item<int64_t>(), 3256);

  const auto tiktok = find_features(data / "tiktok");
  ASSERT_EQ(tiktok.size(), 2u);
  Vocabulary items;
  for (int i = 0; i < 6710; ++i) items.add(std::to_string(i));
  const Imported audio = import_one(folder, tiktok[0], items, true);
  EXPECT_EQ(audio.report["matched"], 6710);
  EXPECT_EQ(read_file(folder / "dataset/audio_feat.npy").substr(128),
            read_file(data / "tiktok/audio_feat.npy").substr(128));
}

}  // namespace
}  // namespace tessera
