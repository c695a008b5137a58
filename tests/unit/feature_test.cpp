#include "tessera/data/feature.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <cmath>
#include <cstdlib>

#include "tessera/data/npy.h"
#include "tests/unit/temp_folder.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

/// Head of a .npy file as numpy 2 writes it (numpy/lib/format.py), padded to a multiple of 64.
std::string head(const std::string& dict, int version = 1) {
  const size_t before = version == 1 ? 10 : 12;
  const size_t length = (before + dict.size() + 1 + 63) / 64 * 64 - before;
  std::string out = "\x93NUMPY";
  out += static_cast<char>(version);
  out += '\0';
  out += static_cast<char>(length);
  out += '\0';
  if (version > 1) out += std::string(2, '\0');
  return out + dict + std::string(length - dict.size() - 1, ' ') + '\n';
}

std::string unhex(const std::string& hex) {
  std::string out;
  for (size_t i = 0; i < hex.size(); i += 2) {
    out += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  }
  return out;
}

// numpy.array([[1.5, -2, .1], [65504, 6e-8, -0.]]).astype(..).tobytes().hex(), numpy 2.4.
const std::string kHalves = unhex("003e00c0662eff7b01000080");
const std::string kFloats = unhex("0000c03f000000c0cdcccc3d00e07f4759d9803300000080");
const std::string kDoubles = unhex(
    "000000000000f83f00000000000000c09a9999999999b93f0000000000fcef402b69a4292b1b703e"
    "0000000000000080");

std::string dict(const std::string& descr, const std::string& shape = "(2, 3)",
                 const std::string& order = "False") {
  return "{'descr': " + descr + ", 'fortran_order': " + order + ", 'shape': " + shape + ", }";
}

std::vector<float> row(const MappedArray& array, int64_t r) {
  std::vector<float> out(array.width());
  array.read_row(r, out.data());
  return out;
}

TEST(Npy, ReadsWhatNumpyWrites) {
  const TempFolder folder;
  for (const int version : {1, 2, 3}) {
    for (const auto& [descr, bytes, dtype] :
         {std::tuple{"'<f2'", kHalves, torch::kHalf}, std::tuple{"'<f4'", kFloats, torch::kFloat},
          std::tuple{"'<f8'", kDoubles, torch::kDouble}}) {
      const MappedArray array = map_npy(folder.file("a.npy", head(dict(descr), version) + bytes));
      EXPECT_EQ(array.n_rows(), 2);
      EXPECT_EQ(array.width(), 3);
      EXPECT_EQ(array.dtype(), dtype);
      EXPECT_EQ(array.bytes(), bytes);
      const bool half = dtype == torch::kHalf;
      // 0x2e66 = 1638 * 2^-14 and 0x0001 = 2^-24, IEEE 754 binary16.
      EXPECT_EQ(row(array, 0), (std::vector<float>{1.5f, -2.0f, half ? 0.0999755859375f : 0.1f}));
      const auto second = row(array, 1);
      EXPECT_EQ(second[0], 65504.0f);
      EXPECT_EQ(second[1], half ? std::ldexp(1.0f, -24) : 6e-8f);
      EXPECT_TRUE(second[2] == 0.0f && std::signbit(second[2]));
    }
  }
}

TEST(Npy, EveryHalfIsConvertedExactly) {
  // The value of a binary16 by its definition: sign, 5 bits of exponent, 10 of fraction.
  std::string bytes;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    bytes += static_cast<char>(bits & 0xff);
    bytes += static_cast<char>(bits >> 8);
  }
  const TempFolder folder;
  for (const int64_t width : {16, 1}) {  // whole vectors, and only the rest of one
    const std::string shape =
        "(" + std::to_string(65536 / width) + ", " + std::to_string(width) + ")";
    const MappedArray array = map_npy(folder.file("h.npy", head(dict("'<f2'", shape)) + bytes));
    int64_t wrong = 0;
    for (int64_t r = 0; r < array.n_rows(); ++r) {
      const auto values = row(array, r);
      for (int64_t k = 0; k < width; ++k) {
        const auto bits = static_cast<uint32_t>(r * width + k);
        const int exponent = static_cast<int>(bits >> 10 & 31),
                  fraction = static_cast<int>(bits & 1023);
        const float sign = bits >> 15 ? -1.0f : 1.0f;
        const float value = values[static_cast<size_t>(k)];
        if (exponent == 31) {
          wrong += fraction == 0 ? value != sign * INFINITY : !std::isnan(value);
        } else {
          const float wanted = exponent == 0
                                   ? std::ldexp(static_cast<float>(fraction), -24)
                                   : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
          wrong += value != sign * wanted || std::signbit(value) != std::signbit(sign);
        }
      }
    }
    EXPECT_EQ(wrong, 0) << "width " << width;
  }
}

TEST(Npy, RefusesOtherFiles) {
  const TempFolder folder;
  const auto error = [&](const std::string& bytes) {
    return error_of([&] { map_npy(folder.file("x.npy", bytes)); });
  };
  const std::string good = head(dict("'<f4'")) + kFloats;
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "empty file"},
      {good.substr(0, 5), "not a .npy file"},
      {good.substr(0, 9), "truncated"},
      {good.substr(0, 60), "truncated"},
      {good.substr(0, good.size() - 1), "truncated: shape [2, 3] of <f4 does not fit into the 23"},
      {good + "x", "1 bytes after the array"},
      {"PK\x03\x04 and the rest", "not a .npy file (starts with 'PK"},
      {"\x80\x04\x95", "pickle"},
      {head(dict("'<f4'"), 1).replace(6, 1, "\x04"), "version 4"},
      {head(dict("'<f4'", "(2, 3)", "True")) + kFloats, "Fortran order"},
      {head(dict("'>f4'")) + kFloats, "big-endian numbers ('>f4'); save with array.astype('<f4')"},
      {head(dict("'|O'")) + kFloats, "pickled Python objects"},
      {head(dict("'<U3'")) + kFloats, "dtype '<U3', wanted float16"},
      {head(dict("'<i4'")) + kFloats, "dtype Int, wanted float16"},
      {head(dict("[('a', '<f4')]")) + kFloats, "records"},
      {head(dict("'<f4'", "(6,)")) + kFloats, "shape [6], wanted two dimensions"},
      {head(dict("'<f4'", "(2, 3, 1)")) + kFloats, "shape [2, 3, 1], wanted two"},
      {head(dict("'<f4'", "(2, 0)")), "width 0"},
      {head(dict("'<f4'", "(0, 2000000)")), "width 2000000, wanted at most"},
      {head(dict("'<f4'", "(9223372036854775807, 3)")) + kFloats, "truncated"},
      {head(dict("'<f4'", "(4611686018427387904, 4)")), "truncated"},
      {head(dict("'<f4'", "(-2, 3)")) + kFloats, "damaged"},
      {head("{'descr': '<f4', 'shape': (2, 3)}") + kFloats, "damaged"},
      {head("{'descr': '<f4'") + kFloats, "damaged"},
  };
  for (const auto& [bytes, words] : cases) {
    const std::string found = error(bytes);
    EXPECT_TRUE(found.starts_with("3: ") && found.find(words) != std::string::npos)
        << words << " <- " << found;
    EXPECT_EQ(found.find('\n'), std::string::npos);
  }
  EXPECT_TRUE(error_of([&] { map_npy(folder / "none.npy"); }).starts_with("3: no file "));
  EXPECT_NE(error_of([&] { map_npy(folder.path()); }).find("is a folder"), std::string::npos);
}

TEST(Npy, WritesWhatNumpyWrites) {
  const TempFolder folder;
  const auto values = torch::tensor({{1.5f, -2.0f, 0.1f}, {65504.0f, 6e-8f, -0.0f}});
  write_npy(folder / "a.npy", values);
  EXPECT_EQ(read_file(folder / "a.npy"), head(dict("'<f4'")) + kFloats);
  write_npy(folder / "a.npy", values.to(torch::kHalf));
  EXPECT_EQ(read_file(folder / "a.npy"), head(dict("'<f2'")) + kHalves);
  write_npy(folder / "n.npy", torch::tensor({int64_t{7}, int64_t{-1}}));
  EXPECT_EQ(read_file(folder / "n.npy"),
            head("{'descr': '<i8', 'fortran_order': False, 'shape': (2,), }") +
                unhex("0700000000000000ffffffffffffffff"));
  for (const auto dtype :
       {torch::kHalf, torch::kFloat, torch::kDouble, torch::kInt, torch::kLong}) {
    for (const auto& tensor :
         {torch::arange(6).to(dtype), torch::arange(6).to(dtype).view({3, 2}),
          torch::arange(6).to(dtype).view({3, 2}).t(), torch::empty({0, 4}, dtype)}) {
      write_npy(folder / "r.npy", tensor);
      const auto back = read_npy(folder / "r.npy");
      EXPECT_EQ(back.scalar_type(), dtype);
      EXPECT_TRUE(torch::equal(back, tensor));
    }
  }
}

Feature example(const MappedArray& rows) {
  Feature out;
  out.name = "image";
  out.rows = rows;
  out.row_of_item = torch::tensor({1, -1, 0, 1}, torch::kInt);
  return out;
}

TEST(Feature, GathersRowsAndZeros) {
  const Feature feature = example(MappedArray(torch::tensor({{1.0f, 2.0f}, {3.0f, 4.0f}})));
  EXPECT_EQ(feature.n_items(), 4);
  EXPECT_TRUE(feature.has(0) && !feature.has(1));
  const auto all = torch::tensor({{3.0f, 4.0f}, {0.0f, 0.0f}, {1.0f, 2.0f}, {3.0f, 4.0f}});
  EXPECT_TRUE(torch::equal(feature.all(), all));
  EXPECT_TRUE(torch::equal(feature.present(), torch::tensor({true, false, true, true})));
  const auto items = torch::tensor({int64_t{2}, int64_t{1}, int64_t{2}, int64_t{0}});
  const auto wanted = all.index_select(0, items);
  EXPECT_TRUE(torch::equal(feature.gather(items), wanted));
  EXPECT_TRUE(torch::equal(feature.gather(items.to(torch::kInt)), wanted));
  EXPECT_EQ(feature.gather(torch::empty({0}, torch::kLong)).sizes(), (torch::IntArrayRef{0, 2}));
  EXPECT_THROW(feature.gather(torch::tensor({int64_t{4}})), c10::Error);
  EXPECT_THROW(feature.gather(torch::tensor({int64_t{-1}})), c10::Error);
}

TEST(Feature, GatherIsTheSameForAllDtypesAndThreads) {
  const TempFolder folder;
  const int64_t n = 3000, width = 37;
  const auto values = (torch::arange(n * width).remainder(2048) - 1024).view({n, width}) / 64.0;
  Feature feature;
  feature.row_of_item = (torch::arange(n) * 7 % n).to(torch::kInt);
  const auto wanted = values.to(torch::kFloat).index_select(0, feature.row_of_item);
  const int before = torch::get_num_threads();
  for (const auto dtype : {torch::kHalf, torch::kFloat, torch::kDouble}) {
    write_npy(folder / "a.npy", values.to(dtype));
    feature.rows = map_npy(folder / "a.npy");
    for (const int threads : {1, 2, 5}) {
      torch::set_num_threads(threads);
      EXPECT_TRUE(torch::equal(feature.all(), wanted));
    }
  }
  torch::set_num_threads(before);
}

TEST(RealFeatures, MapAsDescribed) {  // shapes and norms: the README of the data
  const char* place = std::getenv("TESSERA_DATA");
  const fs::path data = place ? place : "data";
  if (!fs::exists(data / "ml-1m/features/text_feat.npy")) {
    GTEST_SKIP() << "no " << (data / "ml-1m/features").string() << ": set TESSERA_DATA";
  }
  const MappedArray text = map_npy(data / "ml-1m/features/text_feat.npy");
  EXPECT_EQ(text.n_rows(), 3883);
  EXPECT_EQ(text.width(), 512);
  EXPECT_EQ(text.dtype(), torch::kHalf);
  for (int64_t r = 0; r < text.n_rows(); ++r) {
    double square = 0;
    for (const float v : row(text, r)) square += double{v} * v;
    ASSERT_NEAR(square, 1.0, 2e-3) << "row " << r;
  }
  const MappedArray image = map_npy(data / "ml-1m/features/image_feat.npy");
  EXPECT_EQ(image.n_rows(), 3256);
  EXPECT_EQ(image.width(), 1024);
  for (const char* name : {"audio_feat.npy", "image_feat.npy"}) {
    const MappedArray array = map_npy(data / "tiktok" / name);
    EXPECT_EQ(array.n_rows(), 6710);
    EXPECT_EQ(array.width(), 128);
    EXPECT_EQ(array.dtype(), torch::kHalf);
  }
}

TEST(Vocabulary, LooksForNearIdsAmongTenThousand) {
  Vocabulary ids;
  for (int i = 0; i < 30'000; ++i) ids.add(fmt::format("item{:05}", i));
  ids.add("apple");
  EXPECT_EQ(ids.near("item00012").size(), 10'000U);
  const auto near = ids.near("aple");
  EXPECT_EQ(near, std::vector<std::string>({"apple"}));
  EXPECT_TRUE(ids.near("").empty());
  EXPECT_TRUE(ids.near("a very long id that nothing is like").empty());
}

}  // namespace
}  // namespace tessera
