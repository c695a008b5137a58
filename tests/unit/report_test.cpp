#include <gtest/gtest.h>

#include "tessera/study/report_models.h"
#include "tessera/study/report_pamd.h"

namespace tessera {
namespace {

TEST(ModelPages, AModelWithoutOneGetsATableOfItsNumbers) {
  EXPECT_EQ(model_sections("Other", Json()), Json::array());
  const Json out = model_sections("Other", {{"a", {{"b", 1}, {"c", "x"}}}, {"d", {1, 2}}});
  ASSERT_EQ(out.size(), 1u);
  EXPECT_EQ(out[0]["title"], "What Other reports");
  const Json& table = out[0]["blocks"][0];
  EXPECT_EQ(table["kind"], "table");
  EXPECT_EQ(table["columns"], Json::array({"what", "value"}));
  EXPECT_EQ(table["rows"], Json::parse(R"([["a.b", 1], ["a.c", "x"], ["d", "[1,2]"]])"));
}

/// Two modalities, two items, worked by hand.
Json facts_of_pamd() {
  return Json::parse(R"({
    "attention": {"list": 20, "n_users": 3, "n_known": 7, "names": ["a_common", "a_specific"],
      "sets": [{"name": "lists", "n": 6, "common": 0.75, "uniform": 0.5, "common_wins": 1.0,
                "bins": [0.25, 0.75], "parts": [0.75, 0.25],
                "modalities": [{"name": "a", "share": 1.0, "uniform": 1.0}]}]},
    "agreement": {"before": {"matched": 0.1, "unmatched": 0.2, "matched_5_50_95": [0, 1, 2],
                             "hit@1": 0.3, "hit@10": 0.4, "n_held_out": 20}},
    "picture": {"items": ["i1", "i2"], "explained": [0.6, 0.3], "n_modalities": 2,
      "parts": [{"name": "a_common", "points": [[1, 2], [3, 4]]},
                {"name": "b_common", "points": [[5, 6], [7, 8]]}]},
    "neighbours": {"kinds": ["common", "a_specific"],
      "items": [{"item": "i1", "lists": [["i2", "i3"], ["i3"]]}]},
    "overlap": [{"modality": "a", "overlap": 1.5}]})");
}

TEST(ModelPages, PamdSaysItsNumbersInWords) {
  const Json out = model_sections("PAMD", facts_of_pamd());
  EXPECT_EQ(out, pamd_sections(facts_of_pamd()));
  std::vector<std::string> titles;
  for (const auto& part : out) titles.push_back(part["title"]);
  EXPECT_EQ(titles,
            (std::vector<std::string>{"Attention: common against specific parts",
                                      "Do the common parts agree?", "The parts in two dimensions",
                                      "Neighbours by part", "How separate are the parts?"}));
  EXPECT_NE(out[0]["note"].get<std::string>().find("each of 3 users drawn from 7 with"),
            std::string::npos);
  const Json& attention = out[0]["blocks"];
  EXPECT_EQ(attention[0]["rows"], Json::parse(R"([["lists", 6, 0.75, 0.5, 1.0]])"));
  EXPECT_EQ(attention[1]["mark"]["value"], 0.5);
  EXPECT_EQ(attention[2]["series"], Json::parse(R"([{"name": "a_common", "values": [0.75]},
                            {"name": "a_specific", "values": [0.25]}])"));
  EXPECT_EQ(attention[3]["rows"], Json::parse(R"([["lists", "a", 1.0, 1.0]])"));
  const Json& agree = out[1];
  EXPECT_EQ(agree["blocks"][0]["rows"],
            Json::parse(R"([["before pretraining", 0.1, 0, 1, 2, 0.2, 0.3, 0.4]])"));
  EXPECT_NE(agree["note"].get<std::string>().find("on 20 items of the training, too few"),
            std::string::npos);
  const Json& scatter = out[2]["blocks"][0];
  EXPECT_EQ(scatter["x"], "axis 1 (60 % of the variance)");
  EXPECT_EQ(scatter["series"][1]["points"], Json::parse(R"([[5, 6, "i1"], [7, 8, "i2"]])"));
  EXPECT_EQ(scatter["joins"], Json::parse("[[1, 2, 5, 6], [3, 4, 7, 8]]"));
  const Json& groups = out[3]["blocks"][0]["groups"];
  EXPECT_EQ(groups[1]["items"],
            Json::parse(R"([{"id": "i2", "mark": "only here"}, {"id": "i3"}])"));
  EXPECT_EQ(groups[2]["label"], "by a_specific");
  EXPECT_EQ(out[4]["note"].get<std::string>().substr(0, 8), "Above 1:");
}

TEST(ModelPages, PamdWithoutPartsToCompareSaysSo) {
  Json facts = {{"agreement", Json::object()},
                {"picture", Json::object()},
                {"neighbours", {{"kinds", Json::array()}, {"items", Json::array()}}}};
  const Json out = pamd_sections(facts);
  ASSERT_EQ(out.size(), 3u);  // neither attention nor overlap
  EXPECT_EQ(out[0]["note"], "No two items have two modalities: nothing to compare.");
  EXPECT_TRUE(out[1]["blocks"].empty());
}

}  // namespace
}  // namespace tessera
