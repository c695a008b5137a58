#include "tessera/eval/protocol.h"

#include <gtest/gtest.h>

#include "tessera/base/error.h"
#include "tessera/eval/protocol_words.h"

namespace tessera {
namespace {

struct Course {
  int64_t stopped_after = -1, best = -1;
};

Course follow(const std::string& name, const std::vector<double>& scores, int64_t patience) {
  EarlyStopping stopping(find_protocol(name), patience);
  Course result;
  for (size_t epoch = 0; epoch < scores.size(); ++epoch) {
    stopping.add(static_cast<int64_t>(epoch), scores[epoch]);
    if (stopping.stop()) {
      result.stopped_after = static_cast<int64_t>(epoch);
      break;
    }
  }
  result.best = stopping.best_epoch();
  return result;
}

// specs: protocol section 5, "Early stopping test".
TEST(EarlyStopping, FollowsTheSpecsExample) {
  const std::vector<double> scores = {.05001, .05004, .05003, .05002, .05200};
  const Course strict = follow("strict", scores, 2);
  EXPECT_EQ(strict.stopped_after, 3);
  EXPECT_EQ(strict.best, 1);
  const Course mmrec = follow("mmrec", scores, 2);
  EXPECT_EQ(mmrec.stopped_after, 3);
  EXPECT_EQ(mmrec.best, 0);
  const Course recbole = follow("recbole-seq", scores, 2);
  EXPECT_EQ(recbole.stopped_after, -1);
  EXPECT_EQ(recbole.best, 4);
}

TEST(EarlyStopping, TheFirstEvaluationCountsAndTheBestScoreIsUnrounded) {
  EarlyStopping stopping(find_protocol("mmrec"), 20);
  EXPECT_DOUBLE_EQ(stopping.best_, -1);
  EXPECT_TRUE(stopping.add(4, 0.0));
  EXPECT_EQ(stopping.best_epoch(), 4);
  EXPECT_TRUE(stopping.add(5, 0.12344));
  EXPECT_DOUBLE_EQ(stopping.best_score(), 0.12344);
  EXPECT_DOUBLE_EQ(stopping.best_, 0.1234);

  EarlyStopping below(find_protocol("strict"), 1);
  EXPECT_TRUE(below.add(0, -3.0));
  EXPECT_EQ(below.best_epoch(), 0);
}

// 10^4 x halfway between integers, exact in binary: 0.00390625 * 10^4 = 39.0625 is not halfway, so
// halves are made of k / 20000 that double multiplication by 10^4 returns as k + 1/2.
TEST(EarlyStopping, RoundsHalfToEven) {
  for (const int k : {2, 4, 10, 12, 100}) {
    const double x = (k + 0.5) / 1e4;
    if (x * 1e4 != k + 0.5) continue;
    EarlyStopping stopping(find_protocol("mmrec"), 20);
    stopping.add(0, x);
    EXPECT_DOUBLE_EQ(stopping.best_, k / 1e4) << k;
  }
  const double odd = 3.5 / 1e4;
  ASSERT_EQ(odd * 1e4, 3.5);
  EarlyStopping stopping(find_protocol("mmrec"), 20);
  stopping.add(0, odd);
  EXPECT_DOUBLE_EQ(stopping.best_, 4 / 1e4);
}

TEST(EarlyStopping, CountersContinueAfterTheyWereCopied) {
  EarlyStopping first(find_protocol("strict"), 2);
  first.add(0, .5);
  first.add(1, .4);
  EarlyStopping second(find_protocol("strict"), 2);
  second.best_ = first.best_;
  second.best_score_ = first.best_score_;
  second.best_epoch_ = first.best_epoch_;
  second.misses_ = first.misses_;
  second.add(2, .4);
  EXPECT_TRUE(second.stop());
  EXPECT_EQ(second.best_epoch(), 0);
}

// specs: protocol section 5, the table and the paragraph below it.
TEST(Protocols, AreTheTable) {
  using Mask = Protocol::Mask;
  const Protocol& strict = find_protocol("strict");
  EXPECT_EQ(strict.mask_valid, Mask::train);
  EXPECT_EQ(strict.mask_test, Mask::train_valid);
  EXPECT_TRUE(strict.average_cold_users);
  EXPECT_TRUE(strict.drop_repeats);
  EXPECT_TRUE(strict.sequential_sees_valid);
  EXPECT_EQ(strict.valid_metric, "recall@20");
  EXPECT_FALSE(strict.round4);
  EXPECT_FALSE(strict.tie_improves);
  EXPECT_FALSE(strict.patience_plus_one);
  EXPECT_EQ(strict.patience, 20);
  EXPECT_EQ(strict.epochs, 1000);
  EXPECT_EQ(strict.topk, (std::vector<int64_t>{10, 20}));

  const Protocol& mmrec = find_protocol("MMRec");
  EXPECT_EQ(mmrec.mask_valid, Mask::train);
  EXPECT_EQ(mmrec.mask_test, Mask::train);
  EXPECT_FALSE(mmrec.average_cold_users);
  EXPECT_FALSE(mmrec.drop_repeats);
  EXPECT_FALSE(mmrec.sequential_sees_valid);
  EXPECT_EQ(mmrec.valid_metric, "recall@20");
  EXPECT_TRUE(mmrec.round4);
  EXPECT_FALSE(mmrec.tie_improves);
  EXPECT_TRUE(mmrec.patience_plus_one);
  EXPECT_EQ(mmrec.patience, 20);
  EXPECT_EQ(mmrec.epochs, 1000);
  EXPECT_EQ(mmrec.topk, (std::vector<int64_t>{5, 10, 20, 50}));

  const Protocol& recbole = find_protocol("recbole_seq");
  EXPECT_EQ(recbole.mask_valid, Mask::none);
  EXPECT_EQ(recbole.mask_test, Mask::none);
  EXPECT_TRUE(recbole.average_cold_users);
  EXPECT_FALSE(recbole.drop_repeats);
  EXPECT_TRUE(recbole.sequential_sees_valid);
  EXPECT_EQ(recbole.valid_metric, "mrr@10");
  EXPECT_TRUE(recbole.round4);
  EXPECT_TRUE(recbole.tie_improves);
  EXPECT_TRUE(recbole.patience_plus_one);
  EXPECT_EQ(recbole.patience, 10);
  EXPECT_EQ(recbole.epochs, 300);
  EXPECT_EQ(recbole.topk, (std::vector<int64_t>{10}));

  for (const char* name : {"seq-mask", "seq-none"}) {
    const Protocol& seq = find_protocol(name);
    const bool masked = std::string(name) == "seq-mask";
    EXPECT_EQ(seq.mask_valid, masked ? Mask::train : Mask::none);
    EXPECT_EQ(seq.mask_test, masked ? Mask::train_valid : Mask::none);
    EXPECT_TRUE(seq.average_cold_users);
    EXPECT_FALSE(seq.drop_repeats);
    EXPECT_TRUE(seq.sequential_sees_valid);
    EXPECT_EQ(seq.valid_metric, "ndcg@10");
    EXPECT_FALSE(seq.round4);
    EXPECT_FALSE(seq.tie_improves);
    EXPECT_FALSE(seq.patience_plus_one);
    EXPECT_EQ(seq.patience, 10);
    EXPECT_EQ(seq.epochs, 200);
    EXPECT_EQ(seq.topk, (std::vector<int64_t>{5, 10, 20}));
  }
}

// sequential section 2: what becomes of seen items is printed with every result.
TEST(Protocols, SayWhatBecomesOfSeenItems) {
  EXPECT_EQ(protocol_words("recbole-seq"), "recbole-seq, seen none");
  EXPECT_EQ(protocol_words("ratio20"), "ratio20, seen none");
  EXPECT_EQ(protocol_words("strict"), "strict, seen mask");
  EXPECT_EQ(protocol_words("mmrec"), "mmrec, seen mask (train only)");
  EXPECT_EQ(protocol_words("seq-mask"), "seq-mask");  // the name says it
  EXPECT_EQ(protocol_words("seq-none"), "seq-none");
  EXPECT_EQ(protocol_words("somebody's"), "somebody's");
  EXPECT_EQ(seen_words("seq-mask"), "mask");
  EXPECT_EQ(seen_words("somebody's"), "");
}

// kdsr section 8: ratio20 never stands in a table.
TEST(Protocols, OneIsRefusedInTables) {
  for (const Protocol& protocol : protocols()) {
    try {
      refuse_in_tables(protocol, "compare");
      EXPECT_NE(protocol.name, "ratio20");
    } catch (const InputError& error) {
      EXPECT_EQ(protocol.name, "ratio20");
      EXPECT_EQ(error.code(), Exit::usage);
    }
  }
}

TEST(Protocols, UnknownNameNamesTheNearest) {
  try {
    find_protocol("strickt");
    FAIL() << "no error";
  } catch (const InputError& error) {
    EXPECT_EQ(error.code(), Exit::usage);
    EXPECT_NE(std::string(error.what()).find("did you mean 'strict'"), std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace tessera
