#include "tessera/data/safetensors.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#include <fstream>

#include "tessera/data/feature.h"
#include "tests/unit/temp_folder.h"

namespace tessera {
namespace {

/// A file by hand from the description of the format: length of the head, head, data.
std::string file_of(const std::string& head, const std::string& data) {
  std::string out;
  for (int i = 0; i < 8; ++i) out += static_cast<char>(uint64_t{head.size()} >> (8 * i));
  return out + head + data;
}

TEST(Safetensors, ReadsAFileWrittenByHand) {
  const TempFolder folder;
  const std::string head =
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},)"
      R"("a":{"dtype":"I32","shape":[],"data_offsets":[4,8]},)"
      R"("e":{"dtype":"F32","shape":[0,3],"data_offsets":[8,8]},)"
      R"("t":{"dtype":"BOOL","shape":[1,2],"data_offsets":[8,10]}}   )";
  const std::string data("\x00\x3e\x00\xc0\x05\x00\x00\x00\x01\x00", 10);
  const auto read = read_safetensors(folder.file("a.safetensors", file_of(head, data)));
  ASSERT_EQ(read.size(), 4u);
  EXPECT_TRUE(torch::equal(read.at("b"), torch::tensor({1.5, -2.0}).to(torch::kHalf)));
  EXPECT_TRUE(torch::equal(read.at("a"), torch::tensor(5, torch::kInt)));
  EXPECT_EQ(read.at("e").sizes(), (torch::IntArrayRef{0, 3}));
  EXPECT_TRUE(torch::equal(read.at("t"), torch::tensor({{true, false}})));
}

TEST(Safetensors, WritesWideNumbersFirstWithoutGaps) {
  const TempFolder folder;
  const TensorMap tensors = {{"a", torch::tensor({uint8_t{9}}, torch::kByte)},
                             {"b", torch::tensor({1.0f})},
                             {"c", torch::tensor({int64_t{-1}})},
                             {"d", torch::tensor({2.0f})}};
  write_safetensors(folder / "w.safetensors", tensors, {{"epoch", 3}, {"name", "x"}});
  const std::string head = R"({"__metadata__":{"epoch":"3","name":"x"},)"
                           R"("c":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},)"
                           R"("b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]},)"
                           R"("d":{"dtype":"F32","shape":[1],"data_offsets":[12,16]},)"
                           R"("a":{"dtype":"U8","shape":[1],"data_offsets":[16,17]}})";
  const std::string padded = head + std::string((8 - head.size() % 8) % 8, ' ');
  EXPECT_EQ(read_file(folder / "w.safetensors"),
            file_of(padded, std::string(8, '\xff') + std::string("\0\0\x80\x3f\0\0\0\x40\x09", 9)));
  write_safetensors(folder / "again.safetensors", tensors, {{"epoch", 3}, {"name", "x"}});
  EXPECT_EQ(sha256_of_file(folder / "w.safetensors"), sha256_of_file(folder / "again.safetensors"));
}

TEST(Safetensors, KeepsEveryDtypeAndShape) {
  const TempFolder folder;
  TensorMap tensors;
  for (const auto dtype : {torch::kHalf, torch::kFloat, torch::kDouble, torch::kInt, torch::kLong,
                           torch::kByte, torch::kBool}) {
    const std::string name = c10::toString(dtype);
    tensors[name + ".scalar"] = torch::ones({}, dtype);
    tensors[name + ".cube"] = torch::arange(24).remainder(2).view({2, 3, 4}).to(dtype);
    tensors[name + ".transposed"] = torch::arange(6).view({2, 3}).t().to(dtype);
    tensors[name + ".empty"] = torch::empty({3, 0}, dtype);
  }
  write_safetensors(folder / "k.safetensors", tensors);
  const auto back = read_safetensors(folder / "k.safetensors");
  ASSERT_EQ(back.size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    EXPECT_EQ(back.at(name).scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(torch::equal(back.at(name), tensor)) << name;
  }
  write_safetensors(folder / "none.safetensors", {});
  EXPECT_TRUE(read_safetensors(folder / "none.safetensors").empty());
}

TEST(Safetensors, RefusesDamage) {
  const TempFolder folder;
  const std::string data(16, '\0');
  const auto entry = [](const std::string& name, const std::string& dtype, const std::string& shape,
                        const std::string& offsets) {
    return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape +
           R"(,"data_offsets":)" + offsets + "}";
  };
  const auto one = [&](const std::string& dtype, const std::string& shape,
                       const std::string& offsets) {
    return file_of("{" + entry("a", dtype, shape, offsets) + "}", data);
  };
  const std::string good = one("F32", "[4]", "[0,16]");
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "0 bytes, too few"},
      {good.substr(0, 7), "7 bytes, too few"},
      {good.substr(0, 20), "truncated"},
      {good.substr(0, good.size() - 1), "ends at byte 16 of the data, the file has 15"},
      {good + "x", "1 bytes after the last tensor"},
      {std::string(8, '\xff') + good, "truncated, or no .safetensors file"},
      {file_of("{" + std::string(2 << 20, ' ') + "}", ""), "wanted at most"},
      {file_of("[1]", data), "no JSON object"},
      {file_of("{\"a\":", data), "not valid JSON"},
      {file_of(std::string(500, '['), data), "JSON"},
      {file_of("{\"a\":1}", data), "'a': wanted dtype, shape and data_offsets"},
      {one("BF16", "[8]", "[0,16]"), "dtype 'BF16', wanted F16"},
      {one("F32", "[4]", "[0,8]"), "8 bytes for a shape [4] of F32, wanted 16"},
      {one("F32", "[4]", "[16,0]"), "two rising numbers"},
      {one("F32", "[4]", "[-16,0]"), "two rising numbers"},
      {one("F32", "[4.5]", "[0,16]"), "no usable shape"},
      {one("F32", "[-4]", "[0,16]"), "no usable shape"},
      {one("F32", "[4611686018427387904,4]", "[0,16]"), "no usable shape"},
      {one("F32", "[0,4000000000,4000000000]", "[0,0]"), "no usable shape"},
      {file_of("{" + entry("a", "F32", "[3]", "[0,12]") + "," + entry("b", "F32", "[2]", "[8,16]") +
                   "}",
               data),
       "overlap at byte"},
      {file_of("{" + entry("a", "F32", "[2]", "[0,8]") + "," + entry("b", "F32", "[1]", "[12,16]") +
                   "}",
               data),
       "leave a gap at byte"},
      {file_of("{" + entry("t", "BOOL", "[1]", "[0,1]") + "}", "\x07"), "neither 0 nor 1"},
  };
  for (const auto& [bytes, words] : cases) {
    const std::string found =
        error_of([&] { read_safetensors(folder.file("x.safetensors", bytes)); });
    EXPECT_TRUE(found.starts_with("3: ") && found.find(words) != std::string::npos)
        << words << " <- " << found;
  }
}

TEST(Safetensors, AFailedWriteKeepsTheOldFile) {
  const TempFolder folder;
  const auto path = folder.file("kept/w.safetensors", "old");
  EXPECT_THROW(write_safetensors(folder / "kept/w.safetensors/below", {}), RunError);
  EXPECT_EQ(read_file(path), "old");
}

TEST(Safetensors, MapsAFeature) {
  const TempFolder folder;
  const auto rows = torch::arange(6).view({3, 2}).to(torch::kHalf);
  write_safetensors(folder / "f.safetensors", {{"rows", rows}, {"scale", torch::ones({1})}});
  const MappedArray array = map_safetensors(folder / "f.safetensors");
  EXPECT_EQ(array.n_rows(), 3);
  EXPECT_EQ(array.width(), 2);
  EXPECT_EQ(array.dtype(), torch::kHalf);
  float row[2];
  array.read_row(2, row);
  EXPECT_EQ(row[0], 4.0f);
  EXPECT_EQ(row[1], 5.0f);
  EXPECT_EQ(map_safetensors(folder / "f.safetensors", "rows").n_rows(), 3);
  const auto error = [&](const std::string& name) {
    return error_of([&] { map_safetensors(folder / "f.safetensors", name); });
  };
  EXPECT_NE(error("row").find("no tensor 'row' (did you mean 'rows'?)"), std::string::npos);
  EXPECT_NE(error("scale").find("wanted two dimensions"), std::string::npos);
  write_safetensors(folder / "f.safetensors", {{"a", rows}, {"b", rows}});
  EXPECT_NE(error("").find("several matrices (a, b)"), std::string::npos);
  write_safetensors(folder / "f.safetensors", {{"a", torch::ones({2})}});
  EXPECT_NE(error("").find("no matrix"), std::string::npos);
  write_safetensors(folder / "f.safetensors", {{"a", torch::ones({2, 2}, torch::kInt)}});
  EXPECT_NE(error("").find("dtype Int, wanted float16"), std::string::npos);
  write_safetensors(folder / "f.safetensors", {{"a", torch::ones({2, 0})}});
  EXPECT_NE(error("").find("width 0"), std::string::npos);
}

TEST(Safetensors, MapsNumbersAtOddAddresses) {
  const TempFolder folder;
  const std::string head = R"({"a":{"dtype":"F64","shape":[1,1],"data_offsets":[0,8]}})";
  for (int pad = 0; pad < 4; ++pad) {
    const auto path = folder.file("o.safetensors", file_of(head + std::string(pad, ' '),
                                                           std::string("\0\0\0\0\0\0\xf8\x3f", 8)));
    float value = 0;
    map_safetensors(path).read_row(0, &value);
    EXPECT_EQ(value, 1.5f);
  }
}

}  // namespace
}  // namespace tessera
