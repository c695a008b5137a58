#include <gtest/gtest.h>

#include <filesystem>
#include <numeric>

#include "tessera/base/error.h"
#include "tessera/base/fields.h"
#include "tessera/base/files.h"
#include "tessera/base/random.h"
#include "tessera/base/text.h"

namespace tessera {
namespace {

struct Sample {
  int64_t embedding_size = 64;
  double reg_weight = 1e-4;
  bool freeze = false;
  std::string variant = "paper";
  double align_weight = 1, mask_weight = 1;
  std::vector<int64_t> topk = {10, 20};

  void describe(Fields& f) {
    f.choice("variant", variant, "which form", {"paper", "released"});
    f.add("embedding_size", embedding_size, "width of the embeddings", at_least(1));
    f.add("reg_weight", reg_weight, "L2 penalty", at_least(0));
    f.add("freeze", freeze, "keep features");
    f.add("align_weight", align_weight, "weight", at_least(0));
    f.add("mask_weight", mask_weight, "weight", at_least(0));
    f.list("topk", topk, "cutoffs", at_least(1));
    f.alias("cl_weight", {"align_weight", "mask_weight"});
    f.preset("variant", "released", {{"align_weight", 2.0}, {"mask_weight", 2.0}});
  }
};

Sample applied(const Settings& settings) {
  Sample sample;
  Fields f("Sample");
  sample.describe(f);
  refuse_unknown(settings, {&f}, "Sample");
  f.apply(settings);
  return sample;
}

std::string message_of(const Settings& settings) {
  try {
    applied(settings);
  } catch (const InputError& e) {
    EXPECT_EQ(e.code(), Exit::usage);
    return e.what();
  }
  return "no error";
}

// "Was it given" is known, also where the value is the default's.
TEST(Fields, AChosenValueIsKnownFromADefault) {
  struct Config {
    Chosen<int64_t> epochs = 1000;
  };
  const auto after = [](const Settings& settings) {
    Config config;
    Fields f("train");
    f.add("epochs", config.epochs, "epochs at most", at_least(1));
    f.apply(settings);
    EXPECT_EQ(f.resolved().at(0).value, static_cast<int64_t>(config.epochs));
    EXPECT_EQ(f.rows().at(0).value, "1000");
    return config.epochs;
  };
  EXPECT_FALSE(after({}).chosen());
  EXPECT_EQ(after({}), 1000);
  EXPECT_TRUE(after({{"epochs", 1000, "flag"}}).chosen());
  EXPECT_EQ(after({{"epochs", "7", "flag"}}), 7);
  Config typed;
  typed.epochs = 1000;
  EXPECT_TRUE(typed.epochs.chosen());
}

TEST(Fields, WordsOfErrors) {
  EXPECT_EQ(message_of({{"embeding_size", 3, "flag"}}),
            "Sample has no setting 'embeding_size' (did you mean 'embedding_size'?)");
  EXPECT_EQ(message_of({{"embedding_size", 0, "flag"}}),
            "Sample.embedding_size must be at least 1, got 0");
  EXPECT_EQ(message_of({{"embedding_size", 2.7, "flag"}}),
            "Sample.embedding_size: expected a value like 64, got 2.7");
  EXPECT_EQ(message_of({{"embedding_size", "2.7", "flag"}}),
            "Sample.embedding_size: expected a value like 64, got 2.7");
  EXPECT_EQ(message_of({{"training_neg_sample_num", 1, "flag"}}),
            "unknown setting 'training_neg_sample_num': here it is 'n_negatives'");
  EXPECT_EQ(message_of({{"variant", "papr", "flag"}}),
            "Sample.variant must be one of paper | released, got papr (did you mean 'paper'?)");
  EXPECT_EQ(message_of({{"reg_weight", "nan", "flag"}}),
            "Sample.reg_weight: expected a value like 0.0001, got nan");
}

TEST(Fields, PresetThenExplicitThenAlias) {
  EXPECT_EQ(applied({{"variant", "released", "flag"}}).align_weight, 2);
  EXPECT_EQ(applied({{"align_weight", 5, "file"}, {"variant", "released", "flag"}}).align_weight,
            5);
  const Sample both = applied({{"cl-weight", "3", "flag"}});
  EXPECT_EQ(both.align_weight, 3);
  EXPECT_EQ(both.mask_weight, 3);
  EXPECT_EQ(applied({{"topk", "5,10", "flag"}}).topk, (std::vector<int64_t>{5, 10}));
}

// The training's protocol may decide a model's default.
TEST(Fields, PresetOnASettingOfAnotherOwner) {
  const auto rows = [](const Settings& settings) {
    std::string value = "user";
    int64_t size = 1;
    Fields f("Sample");
    f.choice("rows", value, "rows", {"user", "prefix"});
    f.add("size", size, "size");
    f.preset("protocol", "recbole-seq", {{"rows", "prefix"}});
    f.preset("rows", "prefix", {{"size", 2}});
    f.apply(settings);
    EXPECT_EQ(size, value == "prefix" ? 2 : 1);
    return value + " " + f.resolved()[0].origin;
  };
  EXPECT_EQ(rows({}), "user default");
  EXPECT_EQ(rows({{"protocol", "strict", "flag"}}), "user default");
  EXPECT_EQ(rows({{"protocol", "RecBole_Seq", "flag"}}), "prefix protocol=recbole-seq");
  EXPECT_EQ(rows({{"rows", "user", "file"}, {"protocol", "recbole-seq", "flag"}}), "user file");
  EXPECT_EQ(rows({{"protocol", "recbole-seq", "file"}, {"protocol", "strict", "flag"}}),
            "user default");
}

TEST(Fields, ResolvedCarriesOrigins) {
  Sample sample;
  Fields f("Sample");
  sample.describe(f);
  f.apply({{"variant", "released", "flag"}, {"reg_weight", 0.5, "a.yaml:3"}});
  for (const auto& r : f.resolved()) {
    if (r.name == "variant") {
      EXPECT_EQ(r.origin, "flag");
    }
    if (r.name == "align_weight") {
      EXPECT_EQ(r.origin, "variant=released");
    }
    if (r.name == "reg_weight") {
      EXPECT_EQ(r.origin, "a.yaml:3");
    }
    if (r.name == "freeze") {
      EXPECT_EQ(r.origin, "default");
    }
  }
  EXPECT_NE(f.help().find("  embedding_size = 64  width of the embeddings; must be at least 1\n"),
            std::string::npos);
}

// Known answers of Random123's kat_vectors file for philox4x32-10.
TEST(Random, PhiloxKnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Random, Fnv) {  // published test vectors of FNV-1a
  EXPECT_EQ(fnv1a64(""), 0xcbf29ce484222325ULL);
  EXPECT_EQ(fnv1a64("a"), 0xaf63dc4c8601ec8cULL);
  EXPECT_EQ(fnv1a64("foobar"), 0x85944171f73967e8ULL);
}

TEST(Random, DrawsHaveTheirMoments) {
  const Random random(999, "moments");
  double sum = 0, squares = 0, below_sum = 0;
  const int n = 200000;
  for (int i = 0; i < n; ++i) {
    const double x = random.normal(1, i, 0);
    sum += x;
    squares += x * x;
    uint32_t draw = 0;
    below_sum += random.below(10, 2, i, draw);
  }
  EXPECT_NEAR(sum / n, 0, 0.01);
  EXPECT_NEAR(squares / n, 1, 0.02);
  EXPECT_NEAR(below_sum / n, 4.5, 0.03);
}

TEST(Random, StreamsAndKeysDiffer) {
  const Random a(1, "x"), b(1, "y"), c(2, "x");
  EXPECT_NE(a.bits(0, 0, 0), b.bits(0, 0, 0));
  EXPECT_NE(a.bits(0, 0, 0), c.bits(0, 0, 0));
  EXPECT_EQ(a.bits(5, 6, 7), Random(1, "x").bits(5, 6, 7));
  EXPECT_NE(a.bits(0, uint64_t{1} << 33, 0), a.bits(0, 0, 0));
  EXPECT_NE(a.bits(0, uint64_t{1} << 37, 0), a.bits(0, 0, 0));
}

TEST(Random, ShuffleIsAPermutation) {
  std::vector<int> values(100);
  std::iota(values.begin(), values.end(), 0);
  Random(3, "s").shuffle(values, 1);
  std::vector<int> sorted = values;
  EXPECT_FALSE(std::is_sorted(values.begin(), values.end()));
  std::sort(sorted.begin(), sorted.end());
  for (int i = 0; i < 100; ++i) EXPECT_EQ(sorted[i], i);
}

TEST(Files, Sha256OfAbc) {  // FIPS 180-2, appendix B
  EXPECT_EQ(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Files, FolderIsExchangedWhole) {
  const fs::path place = fs::path(testing::TempDir()) / "tessera_exchange";
  fs::remove_all(place);
  write_folder(place, [](const fs::path& to) { write_file(to / "a", "1"); });
  write_folder(place, [](const fs::path& to) { write_file(to / "b", "2"); });
  EXPECT_FALSE(fs::exists(place / "a"));
  EXPECT_EQ(read_file(place / "b"), "2");
  EXPECT_THROW(write_folder(place, [](const fs::path&) { throw data_error("stop"); }), InputError);
  EXPECT_EQ(read_file(place / "b"), "2");
  fs::remove_all(place);
}

TEST(Errors, NearestName) {
  EXPECT_EQ(nearest("lightgnc", {"LightGCN", "BPR"}), "LightGCN");
  EXPECT_EQ(nearest("zzzzzz", {"LightGCN", "BPR"}), "");
  EXPECT_EQ(printable("a\tb\x01"), "a\\tb\\x01");
}

using Words = std::vector<std::string>;

TEST(Text, ListsLeaveOutWhatIsEmptyAndLinesDoNot) {
  EXPECT_EQ(split_list("a,b c,,d,"), (Words{"a", "b c", "d"}));
  EXPECT_EQ(split_list(""), Words{});
  EXPECT_EQ(split_list("a\nb\n\n", '\n'), (Words{"a", "b"}));
  EXPECT_EQ(split_cells("a\t\tb\t", '\t'), (Words{"a", "", "b", ""}));
  EXPECT_EQ(split_cells("", '\t'), Words{""});
}

TEST(Text, TrimsAndLowers) {
  EXPECT_EQ(trimmed(" \ta b\r\n"), "a b");
  EXPECT_EQ(trimmed(" \n"), "");
  EXPECT_EQ(lower("Abc-\xc3\x84Z"), "abc-\xc3\x84z");  // ASCII only
}

TEST(Text, ACellHasNoTabAndNoLineEnd) {
  EXPECT_EQ(tsv_cell(std::string_view("a\tb\r\nc\0d", 8)), "a b  c d");
  EXPECT_EQ(tsv_cell("plain"), "plain");
}

}  // namespace
}  // namespace tessera
