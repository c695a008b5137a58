#include "tessera/read/known_sets.h"

#include <gtest/gtest.h>

// Counts: specs/protocol.md section 9.
namespace tessera {
namespace {

TEST(KnownSets, NamesSetAndSplit) {
  EXPECT_EQ(known_set_words({19445, 7050, 160792, 118551, 20559, 21682, {}}),
            "this is Baby (Amazon 2014, 5-core), MMRec split");
  EXPECT_EQ(known_set_words({19445, 7050, 160792, 118551, 21682, 20559, {{"text", 1024}}}),
            "this is Baby (Amazon 2014, 5-core), MMSSL and DiffMM split");
  EXPECT_EQ(known_set_words({943, 1682, 100000, 0, 0, 0, {}}), "this is ML-100K");
  EXPECT_EQ(
      known_set_words({35598, 18357, 296337, 218409, 40029, 37899, {{"image", 4096}}}),
      "this is Sports (Amazon 2014, 5-core), MMSSL split (180 items have no image, the mean is "
      "filled in)");
}

TEST(KnownSets, SaysWhatDiffers) {
  EXPECT_EQ(known_set_words({19445, 7049, 160792, 118551, 20559, 21682, {}}),
            "this is Baby (Amazon 2014, 5-core), MMRec split, but: 7,049 items, 7,050 expected");
  const auto other = known_set_words({19445, 7050, 160792, 118550, 20560, 21682, {}});
  EXPECT_NE(other.find("split into 118,550 / 20,560 / 21,682, where MMRec is 118,551"),
            std::string::npos)
      << other;
  const auto wide = known_set_words({19445, 7050, 160792, 118551, 20559, 21682, {{"image", 512}}});
  EXPECT_NE(wide.find("image features are 512 wide, its papers' 4096"), std::string::npos) << wide;
  // The files of the data folder: no test rows.
  const auto tiktok = known_set_words({9308, 6710, 62592, 59541, 3051, 0, {}});
  EXPECT_EQ(tiktok.find("this is TikTok (MMSSL files), MMSSL and DiffMM split without its 6,130 "
                        "test rows (the paper"),
            0U)
      << tiktok;
}

TEST(KnownSets, DoesNotNameStrangers) {
  EXPECT_EQ(known_set_words({943, 1000, 5000, 0, 0, 0, {}}), "");
  EXPECT_EQ(known_set_words({0, 0, 0, 0, 0, 0, {}}), "");
}

}  // namespace
}  // namespace tessera
