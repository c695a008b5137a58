#include "tessera/serve/recommender.h"

#include <gtest/gtest.h>

#include "tests/planted_bundle.h"
#include "tests/unit/temp_folder.h"

// Numbers are worked by hand from the vectors in planted_bundle.h:
//   apple (1, 0)  bread (.5, .5)  cider (0, 1)  dates (.9, .1)  eggs (.2, .8)  figs (2, 2), hidden
//   ann (1, 0) saw apple, bread, cider; bob (0, 1) saw bread, cider, read eggs;
//   cat has no train row and the history cider; dan has nothing.
namespace tessera {
namespace {

using List = std::vector<std::pair<std::string, double>>;

Recommender recommender(const std::string& name, Log log = {}) {
  const TempFolder folder;
  planted::save(name, folder / "model");
  return Recommender(load_bundle(folder / "model"), std::move(log));
}

std::string id_of(const Recommender& from, int64_t item) {
  return std::string(from.version()->catalogue->id(item));
}

void expect_list(const Recommender& from, const std::vector<ScoredItem>& items, const List& want) {
  ASSERT_EQ(items.size(), want.size());
  for (size_t r = 0; r < want.size(); ++r) {
    EXPECT_EQ(id_of(from, items[r].item), want[r].first) << "rank " << r + 1;
    EXPECT_NEAR(items[r].score, want[r].second, 1e-5) << "rank " << r + 1;
  }
}

template <typename Body>
std::string usage_of(Body body) {
  try {
    body();
  } catch (const InputError& e) {
    EXPECT_EQ(e.code(), Exit::usage) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "nothing was refused";
  return "";
}

TEST(Recommender, AnswersUsersHistoriesAndStrangers) {
  Recommender from = recommender("PlantedFactors");
  const auto answers = from.recommend({.users = {"ann", "bob", "cat", "dan"}, .n = 5});
  ASSERT_EQ(answers.size(), 4U);
  EXPECT_EQ(answers[0].user, "ann");
  EXPECT_EQ(answers[0].via, Via::user);
  expect_list(from, answers[0].items, {{"dates", .9}, {"eggs", .2}});
  EXPECT_EQ(answers[1].via, Via::user);
  expect_list(from, answers[1].items, {{"dates", .1}, {"apple", 0}});
  EXPECT_EQ(answers[2].via, Via::item_mean);
  expect_list(from, answers[2].items, {{"eggs", .8}, {"bread", .5}, {"dates", .1}, {"apple", 0}});
  EXPECT_EQ(answers[3].via, Via::popular);  // train rows: apple 1, bread 2, cider 1
  expect_list(from, answers[3].items,
              {{"bread", 2}, {"apple", 1}, {"cider", 1}, {"dates", 0}, {"eggs", 0}});
}

TEST(Recommender, AnswersABareHistoryByTheItemMean) {
  Recommender from = recommender("PlantedFactors");
  const auto answers = from.recommend({.history = {"apple", "cider"}, .n = 4});
  ASSERT_EQ(answers.size(), 1U);
  EXPECT_EQ(answers[0].user, "");
  EXPECT_EQ(answers[0].via, Via::item_mean);
  // The mean is (.5, .5); bread, dates and eggs tie and the lower index comes first.
  expect_list(from, answers[0].items, {{"bread", .5}, {"dates", .5}, {"eggs", .5}});
  const auto stranger = from.recommend({.users = {"eve"}, .history = {"cider"}, .n = 1});
  EXPECT_EQ(stranger[0].user, "eve");
  expect_list(from, stranger[0].items, {{"eggs", .8}});
}

TEST(Recommender, KeepsWhatWasSeenWhenAsked) {
  Recommender from = recommender("PlantedFactors");
  const auto answers = from.recommend({.users = {"ann"}, .n = 6, .filter_seen = false});
  expect_list(from, answers[0].items,
              {{"apple", 1}, {"dates", .9}, {"bread", .5}, {"eggs", .2}, {"cider", 0}});
}

TEST(Recommender, NeverAnswersHiddenItems) {
  for (const char* name : {"PlantedFactors", "PlantedNeighbours", "PlantedPlain"}) {
    Recommender from = recommender(name);
    for (const auto& answer :
         from.recommend({.users = {"ann", "bob", "cat", "dan"}, .n = 6, .filter_seen = false})) {
      EXPECT_EQ(answer.items.size(), 5U) << name;
      for (const auto& scored : answer.items) EXPECT_NE(id_of(from, scored.item), "figs");
    }
  }
}

TEST(Recommender, ExcludesAndRestricts) {
  std::string warned;
  Recommender from =
      recommender("PlantedFactors", Log([&](Level, const std::string& text) { warned += text; }));
  const auto without =
      from.recommend({.users = {"cat", "dan"}, .n = 2, .exclude = {"eggs", "bread", "no such"}});
  expect_list(from, without[0].items, {{"dates", .1}, {"apple", 0}});
  expect_list(from, without[1].items, {{"apple", 1}, {"cider", 1}});
  EXPECT_NE(warned.find("1 of 3 ids"), std::string::npos) << warned;
  const auto only = from.recommend({.users = {"cat"}, .n = 3, .only = {"apple", "bread", "figs"}});
  expect_list(from, only[0].items, {{"bread", .5}, {"apple", 0}});
}

TEST(Recommender, ModelsOfHistoriesTakeThemNatively) {
  Recommender from = recommender("PlantedNeighbours");
  // Together in train: apple and bread once, bread and cider once.
  const auto answers = from.recommend({.users = {"cat", "dan"}, .n = 2});
  EXPECT_EQ(answers[0].via, Via::history);
  expect_list(from, answers[0].items, {{"bread", 1}, {"apple", 0}});
  EXPECT_EQ(answers[1].via, Via::popular);
  const auto given =
      from.recommend({.users = {"ann"}, .history = {"bread"}, .n = 2, .filter_seen = false});
  EXPECT_EQ(given[0].via, Via::history);  // a given history wins
  expect_list(from, given[0].items, {{"apple", 1}, {"cider", 1}});
  expect_list(from, from.similar("bread", 5), {{"apple", 1}, {"cider", 1}});
}

TEST(Recommender, ModelsWithNeitherFallBackToPopularity) {
  Recommender from = recommender("PlantedPlain");
  const auto answers = from.recommend({.users = {"ann", "cat"}, .n = 1});
  EXPECT_EQ(answers[0].via, Via::user);
  EXPECT_EQ(answers[1].via, Via::popular);
  EXPECT_NE(usage_of([&] { from.similar("apple", 1); }).find("use `by` image"), std::string::npos);
}

TEST(Recommender, NamesTheNearestUserAndItem) {
  Recommender from = recommender("PlantedFactors");
  EXPECT_NE(
      usage_of([&] { from.recommend({.users = {"anna"}, .n = 1}); }).find("did you mean 'ann'?"),
      std::string::npos);
  EXPECT_NE(usage_of([&] {
              from.recommend({.history = {"aple"}, .n = 1});
            }).find("did you mean 'apple'?"),
            std::string::npos);
  EXPECT_NE(usage_of([&] { from.similar("bred", 1); }).find("did you mean 'bread'?"),
            std::string::npos);
  usage_of([&] { from.recommend({.n = 1}); });
  usage_of([&] { from.recommend({.users = {"ann", "bob"}, .history = {"apple"}, .n = 1}); });
}

TEST(Recommender, RefusesMoreThanTheCatalogue) {
  Recommender from = recommender("PlantedFactors");
  EXPECT_NE(usage_of([&] { from.recommend({.users = {"ann"}, .n = 7}); }).find("from 1 to 6"),
            std::string::npos);
  usage_of([&] { from.recommend({.users = {"ann"}, .n = 0}); });
  usage_of([&] { from.similar("apple", 7); });
}

TEST(Recommender, FindsNeighboursByVectorsAndByPictures) {
  Recommender from = recommender("PlantedFactors");
  // cos with (1, 0): dates .9 / sqrt(.82), bread 1 / sqrt(2), eggs .2 / sqrt(.68), cider 0.
  expect_list(from, from.similar("apple", 6),
              {{"dates", .99388}, {"bread", .70711}, {"eggs", .24254}, {"cider", 0}});
  // Pictures: apple (1, 0), bread (0, 1), cider (1, 1), eggs (2, 0); dates has none.
  expect_list(from, from.similar("apple", 6, "image"),
              {{"eggs", 1}, {"cider", .70711}, {"bread", 0}});
  expect_list(from, from.similar("apple", 1, "visual"), {{"eggs", 1}});
  EXPECT_NE(usage_of([&] { from.similar("dates", 1, "image"); }).find("5 of 6 items have one"),
            std::string::npos);
  EXPECT_NE(usage_of([&] { from.similar("apple", 1, "imgae"); }).find("did you mean 'image'?"),
            std::string::npos);
}

TEST(Recommender, StreamsAllUsersInOrderAsIfAskedOneByOne) {
  for (const char* name : {"PlantedFactors", "PlantedNeighbours", "PlantedPlain"}) {
    Recommender from = recommender(name);
    Ask ask;
    ask.all_users = true;
    ask.n = 4;
    std::vector<Answer> streamed;
    from.recommend(ask, [&](Answer&& answer) { streamed.push_back(std::move(answer)); });
    ASSERT_EQ(streamed.size(), 4U) << name;
    for (const Answer& answer : streamed) {
      const auto alone = from.recommend({.users = {answer.user}, .n = 4});
      EXPECT_EQ(answer.via, alone[0].via);
      ASSERT_EQ(answer.items.size(), alone[0].items.size()) << name << " " << answer.user;
      for (size_t r = 0; r < answer.items.size(); ++r) {
        EXPECT_EQ(answer.items[r].item, alone[0].items[r].item);
        EXPECT_EQ(answer.items[r].score, alone[0].items[r].score);
      }
    }
    EXPECT_EQ(streamed[3].user, "dan");
    ask.history = {"apple"};
    usage_of([&] { from.recommend(ask); });
  }
}

TEST(Recommender, StreamsNeighboursOfAllItemsThatAreNotHidden) {
  for (const char* by : {"cf", "image"}) {
    Recommender from = recommender("PlantedFactors");
    AskSimilar ask;
    ask.all_items = true;
    ask.n = 3;
    ask.by = by;
    ask.only = {"apple", "bread", "figs"};
    std::vector<std::string> asked;
    const int64_t left_out = from.similar(ask, [&](Neighbours&& found) {
      asked.emplace_back(id_of(from, found.item));
      for (const auto& one : found.items) {
        EXPECT_NE(one.item, found.item);
        EXPECT_TRUE(id_of(from, one.item) == "apple" || id_of(from, one.item) == "bread");
      }
    });
    const bool cf = std::string(by) == "cf";
    EXPECT_EQ(asked.size(), cf ? 5U : 4U);  // dates has no picture
    EXPECT_EQ(left_out, cf ? 0 : 1);
  }
}

TEST(Recommender, RefusesARestrictionThatKnowsNoItem) {
  Recommender from = recommender("PlantedFactors");
  EXPECT_NE(usage_of([&] {
              from.recommend({.users = {"ann"}, .n = 1, .only = {"aple"}});
            }).find("did you mean 'apple'?"),
            std::string::npos);
}

}  // namespace
}  // namespace tessera
