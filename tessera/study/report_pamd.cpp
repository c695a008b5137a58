#include "tessera/study/report_pamd.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <string>

#include "tessera/study/report_views.h"

namespace tessera {
namespace {

Json attention_section(const Json& facts) {
  const size_t chosen = facts["n_users"].get<size_t>(), known = facts["n_known"].get<size_t>();
  Json rows = Json::array(), labels = Json::array(), shares = Json::array();
  Json of_modalities = Json::array(), series = Json::array();
  Json mark = 0.5;  // of the last set, all candidates
  for (const auto& name : facts["names"]) {
    series.push_back({{"name", name}, {"values", Json::array()}});
  }
  for (const auto& set : facts["sets"]) {
    mark = set["uniform"];
    rows.push_back({set["name"], set["n"], set["common"], mark, set["common_wins"]});
    for (const auto& m : set["modalities"]) {
      of_modalities.push_back({set["name"], m["name"], m["share"], m["uniform"]});
    }
    labels.push_back(set["name"]);
    shares.push_back({{"name", set["name"]}, {"values", set["bins"]}});
    for (size_t k = 0; k < series.size(); ++k) series[k]["values"].push_back(set["parts"][k]);
  }
  return {
      {"title", "Attention: common against specific parts"},
      {"note",
       fmt::format("Share of the attention that the common parts get, beside what uniform "
                   "attention to the same parts would give them. "
                   "Over the hits in lists of {}, over the whole lists, and over all candidates: "
                   "each of {} users{} with each item that the user has no train row of.",
                   facts["list"].get<int64_t>(), chosen,
                   chosen < known ? fmt::format(" drawn from {}", known) : "")},
      {"blocks",
       Json::array({Json{{"kind", "table"},
                         {"title", "Mean share of common parts"},
                         {"columns", {"pairs of", "n", "common", "uniform", "common > specific"}},
                         {"rows", rows}},
                    Json{{"kind", "histogram"},
                         {"title", "Share of common parts, pairs of a user and an item"},
                         {"x", "share of common parts"},
                         {"y", "share of pairs"},
                         {"low", 0},
                         {"high", 1},
                         {"series", shares},
                         {"mark", {{"name", "uniform"}, {"value", mark}}}},
                    Json{{"kind", "bars"},
                         {"title", "Mean attention by part"},
                         {"x", "pairs of"},
                         {"y", "share of attention"},
                         {"stacked", true},
                         {"labels", labels},
                         {"series", series}},
                    Json{{"kind", "table"},
                         {"title", "Mean share by modality"},
                         {"columns", {"pairs of", "modality", "share", "uniform"}},
                         {"rows", of_modalities}}})}};
}

/// Before and after pretraining, and as it stands: always matched and unmatched together.
Json agreement_section(const Json& facts) {
  Json rows = Json::array(), chart = Json::array(), last;
  for (const auto& [key, when] :
       {std::pair("before", "before pretraining"), std::pair("after", "after pretraining"),
        std::pair("now", "now")}) {
    const Json check = facts.value(key, Json());
    if (!check.is_object() || !check.contains("matched_5_50_95")) continue;
    const Json& q = check["matched_5_50_95"];
    rows.push_back({when, check["matched"], q[0], q[1], q[2], check["unmatched"], check["hit@1"],
                    check["hit@10"]});
    chart.push_back({{"label", when},
                     {"value", check["matched"]},
                     {"low", q[0]},
                     {"high", q[2]},
                     {"other", check["unmatched"]}});
    last = check;
  }
  const std::string title = "Do the common parts agree?";
  if (rows.empty()) return section(title, "No two items have two modalities: nothing to compare.");
  const auto n = std::max<int64_t>(1, last["n_held_out"].get<int64_t>());
  return {{"title", title},
          {"note",
           fmt::format("Cosine between the common parts of one item (matched) and of different "
                       "items (unmatched), on {} items {}; the share whose partner is the nearest, "
                       "or among the ten nearest (chance: {:.3f}, {:.3f}).",
                       n,
                       facts.contains("now") ? "that were not trained on"
                                             : "of the training, too few to hold any out",
                       1.0 / static_cast<double>(n),
                       10.0 / static_cast<double>(std::max<int64_t>(10, n)))},
          {"blocks", Json::array({Json{{"kind", "table"},
                                       {"title", "Common parts of held-out items"},
                                       {"columns",
                                        {"when", "matched", "5 %", "50 %", "95 %", "unmatched",
                                         "hit@1", "hit@10"}},
                                       {"rows", rows}},
                                  Json{{"kind", "intervals"},
                                       {"title", "Matched against unmatched cosines"},
                                       {"x", "cosine; the line spans 5 to 95 % of the matched"},
                                       {"names", Json::array({"matched, mean", "unmatched, mean"})},
                                       {"rows", chart}}})}};
}

/// 50 pairs of common parts are joined.
Json picture_section(const Json& facts) {
  Json view = section("The parts in two dimensions");
  if (!facts.contains("items")) return view;
  const Json &items = facts["items"], &parts = facts["parts"];
  Json series = Json::array(), joins = Json::array();
  for (const auto& part : parts) {
    Json points = part["points"];
    for (size_t i = 0; i < points.size(); ++i) points[i].push_back(items[i]);
    series.push_back({{"name", part["name"]}, {"points", points}});
  }
  const size_t n_joined = std::min<size_t>(50, items.size());
  // The common parts come first, one a modality.
  for (size_t m = 0; m + 1 < facts["n_modalities"].get<size_t>(); ++m) {
    for (size_t i = 0; i < n_joined; ++i) {
      const Json &a = parts[m]["points"][i], &b = parts[m + 1]["points"][i];
      joins.push_back({a[0], a[1], b[0], b[1]});
    }
  }
  view["note"] = fmt::format(
      "Principal axes of all parts of {} items together, one colour a part; lines join the common "
      "parts of {} items.",
      items.size(), n_joined);
  const auto axis = [&](size_t k) {
    return fmt::format("axis {} ({:.0f} % of the variance)", k + 1,
                       100 * facts["explained"][k].get<double>());
  };
  view["blocks"].push_back({{"kind", "scatter"},
                            {"title", "Joint principal axes"},
                            {"x", axis(0)},
                            {"y", axis(1)},
                            {"series", series},
                            {"joins", joins}});
  return view;
}

/// One block an item, of which the reader chooses.
Json neighbour_section(const Json& facts) {
  Json view = {
      {"title", "Neighbours by part"},
      {"note",
       "The nearest items by cosine, of those that have the modality; marked: in this list "
       "only."},
      {"choose", "Item"},
      {"blocks", Json::array()}};
  const Json& kinds = facts["kinds"];
  for (const auto& of : facts["items"]) {
    std::map<std::string, int> times;
    for (const auto& list : of["lists"]) {
      for (const auto& item : list) ++times[item.get<std::string>()];
    }
    Json self;
    self["id"] = of["item"];
    Json groups = Json::array({Json{{"label", "item"}, {"items", Json::array({self})}}});
    for (size_t k = 0; k < kinds.size(); ++k) {
      Json cards = Json::array();
      for (const auto& item : of["lists"][k]) {
        Json card;
        card["id"] = item;
        if (kinds.size() > 1 && times[item.get<std::string>()] == 1) card["mark"] = "only here";
        cards.push_back(card);
      }
      groups.push_back({{"label", "by " + kinds[k].get<std::string>()}, {"items", cards}});
    }
    view["blocks"].push_back({{"kind", "cards"},
                              {"title", "Neighbours of " + of["item"].get<std::string>()},
                              {"groups", groups}});
  }
  return view;
}

Json overlap_section(const Json& facts) {
  Json rows = Json::array();
  bool high = false;
  for (const auto& of : facts) {
    high = high || of["overlap"].get<double>() > 1;
    rows.push_back({of["modality"], of["overlap"]});
  }
  return {
      {"title", "How separate are the parts?"},
      {"note", high ? "Above 1: the specific parts hold much of the common content with another "
                      "emphasis, as linear maps let them; where specific has to mean specific, "
                      "train with --preset separate."
                    : "0: coordinates of common and specific parts are uncorrelated."},
      {"blocks", Json::array({Json{{"kind", "table"},
                                   {"title", "Overlap of common and specific part"},
                                   {"columns", Json::array({"modality", "overlap"})},
                                   {"rows", rows}}})}};
}

}  // namespace

Json pamd_sections(const Json& facts) {
  Json out = Json::array();
  if (facts.contains("attention")) out.push_back(attention_section(facts["attention"]));
  out.push_back(agreement_section(facts["agreement"]));
  out.push_back(picture_section(facts["picture"]));
  out.push_back(neighbour_section(facts["neighbours"]));
  if (facts.contains("overlap")) out.push_back(overlap_section(facts["overlap"]));
  return out;
}

}  // namespace tessera
