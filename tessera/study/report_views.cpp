#include "tessera/study/report_views.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <set>

namespace tessera {

Json block(const std::string& kind, const std::string& title) {
  Json out;
  out["kind"] = kind;
  out["title"] = title;
  return out;
}

Json section(const std::string& title, const std::string& note) {
  Json out;
  out["title"] = title;
  if (!note.empty()) out["note"] = note;
  out["blocks"] = Json::array();
  return out;
}

Json pair_of(const Json& a, const Json& b) {
  Json out = Json::array();
  out.push_back(a);
  out.push_back(b);
  return out;
}

void flatten(const Json& value, const std::string& name, Json& rows) {
  if (value.is_object() && !value.empty()) {
    for (const auto& [key, inner] : value.items()) {
      flatten(inner, name.empty() ? key : name + "." + key, rows);
    }
    return;
  }
  if (name.empty()) return;
  const bool plain = value.is_string() || value.is_number() || value.is_null();
  rows.push_back(pair_of(name, plain ? value : Json(value.dump())));
}

namespace {

constexpr size_t kWorstShown = 8;

std::string text_of(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

double number_of(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number() ? found->get<double>() : 0.0;
}

const Json& member(const Json& object, const char* key) {
  static const Json kNone;
  const auto found = object.is_object() ? object.find(key) : object.end();
  return object.is_object() && found != object.end() ? *found : kNone;
}

// ---- quality of features ----------------------------------------------------------------------

Json numbers_by_modality(const Json& modalities) {
  Json out = block("table", "Scores by modality");
  out["columns"] = Json::array();
  out["rows"] = Json::array();
  const std::vector<const char*> keys = {"modality", "eta",      "mean",   "null_mean",
                                         "present",  "missing",  "filled", "rewritten",
                                         "scored",   "unscored", "high",   "low"};
  const std::vector<const char*> shares = {"high", "low", "unscored", "missing"};
  for (const char* key : keys) out["columns"].push_back(key);
  for (const char* key : shares) out["columns"].push_back(fmt::format("share {}", key));
  for (int decile = 1; decile < 10; ++decile) {
    out["columns"].push_back(fmt::format("decile {}", decile));
  }
  for (const auto& m : modalities) {
    Json row = Json::array();
    for (const char* key : keys) row.push_back(member(m, key));
    for (const char* key : shares) row.push_back(member(member(m, "shares"), key));
    const Json& deciles = member(m, "deciles");
    for (size_t d = 0; d < 9; ++d) {
      row.push_back(deciles.is_array() && d < deciles.size() ? deciles[d] : Json());
    }
    out["rows"].push_back(row);
  }
  return out;
}

Json score_histogram(const Json& m) {
  const Json& counts = m["histogram"];
  Json out = block("histogram", fmt::format("Scores of {}", text_of(m, "modality")));
  out["x"] = "score";
  out["y"] = "items";
  out["low"] = member(counts, "low");
  out["high"] = member(counts, "high");
  out["series"] = Json::array();
  for (const auto& [name, key] :
       {std::pair("scores", "scores"), std::pair("rows permuted", "null")}) {
    Json one;
    one["name"] = name;
    one["values"] = member(counts, key);
    out["series"].push_back(one);
  }
  out["mark"]["name"] = "eta";
  out["mark"]["value"] = number_of(m, "eta");
  return out;
}

Json scores_by_users(const Json& m) {
  Json out =
      block("intervals", fmt::format("Scores of {} by number of users", text_of(m, "modality")));
  out["x"] = "score: mean, one standard deviation to each side";
  out["rows"] = Json::array();
  for (const auto& band : member(m, "by_users")) {
    const double mean = number_of(band, "mean"), spread = number_of(band, "std");
    Json row;
    row["label"] =
        fmt::format("{:.0f} to {:.0f} users, {:.0f} items", number_of(band, "users_from"),
                    number_of(band, "users_to"), number_of(band, "items"));
    row["value"] = mean;
    row["low"] = mean - spread;
    row["high"] = mean + spread;
    out["rows"].push_back(row);
  }
  return out;
}

/// A row a round; nested numbers as "areas.high".
Json rounds_table(const Json& rounds) {
  Json out = block("table", "Rounds of review and rewriting");
  for (const auto& round : rounds) {
    if (member(round, "kept") != false) continue;
    out["title"] = "Rounds of review and rewriting (not kept: after the best epoch)";
  }
  std::vector<std::string> columns;
  std::vector<std::map<std::string, Json>> rows;
  for (const auto& round : rounds) {
    std::map<std::string, Json> row;
    const auto put = [&](const std::string& name, const Json& value) {
      if (std::find(columns.begin(), columns.end(), name) == columns.end()) columns.push_back(name);
      row[name] = value.is_structured() ? Json(value.dump()) : value;
    };
    for (const auto& [key, value] : round.items()) {
      if (!value.is_object()) {
        put(key, value);
        continue;
      }
      for (const auto& [inner, number] : value.items()) put(key + "." + inner, number);
    }
    rows.push_back(std::move(row));
  }
  out["columns"] = columns;
  out["rows"] = Json::array();
  for (const auto& row : rows) {
    Json cells = Json::array();
    for (const auto& name : columns) cells.push_back(row.contains(name) ? row.at(name) : Json());
    out["rows"].push_back(cells);
  }
  return out;
}

Json card_of(const Json& item, const std::string& note) {
  Json out;
  out["id"] = text_of(item, "item");
  if (!note.empty()) out["note"] = note;
  return out;
}

Json rewritten_cards(const Json& item, const char* why) {
  const std::string title = text_of(item, "title");
  Json out =
      block("cards", fmt::format("{}: {}", why, title.empty() ? text_of(item, "item") : title));
  out["note"] = fmt::format(
      "{} {} from {} in round {:.0f}; score {}{:.4f} after", text_of(item, "modality"),
      member(item, "filled") == true ? "filled in" : "rewritten", text_of(item, "source"),
      number_of(item, "round"),
      member(item, "before").is_number() ? fmt::format("{:.4f} before, ", number_of(item, "before"))
                                         : "",
      number_of(item, "after"));
  out["groups"] = Json::array();
  const auto add = [&](const char* label, const Json& cards) {
    Json group;
    group["label"] = label;
    group["items"] = cards;
    out["groups"].push_back(group);
  };
  add("item", Json::array({card_of(item, "")}));
  for (const auto& [key, label] : {std::pair("neighbours_before", "nearest before"),
                                   std::pair("neighbours_after", "nearest after")}) {
    Json cards = Json::array();
    for (const auto& other : member(item, key)) {
      cards.push_back(card_of(other, fmt::format("cosine {:.3f}", number_of(other, "cosine"))));
    }
    add(label, cards);
  }
  return out;
}

Json worst_section(const Json& worst) {
  Json out =
      section("Lowest scores that were not repaired",
              "For an operator to look at: the row is there, scored low and was left as it is.");
  for (const auto& [modality, items] : worst.items()) {
    if (!items.is_array() || items.empty()) continue;
    Json cards = block("cards", fmt::format("{}: the lowest", modality));
    Json group;
    group["label"] = "lowest first";
    group["items"] = Json::array();
    Json table = block("table", fmt::format("{}: lowest scores", modality));
    table["columns"] = {"item", "title", "users", "score", "score of permuted row"};
    table["rows"] = Json::array();
    for (const auto& item : items) {
      if (group["items"].size() < kWorstShown) {
        group["items"].push_back(
            card_of(item, fmt::format("score {:.4f}, {:.0f} users", number_of(item, "score"),
                                      number_of(item, "users"))));
      }
      Json row = Json::array();
      for (const char* key : {"item", "title", "users", "score", "null_score"}) {
        row.push_back(member(item, key));
      }
      table["rows"].push_back(row);
    }
    cards["groups"] = Json::array({group});
    out["blocks"].push_back(cards);
    out["blocks"].push_back(table);
  }
  return out;
}

}  // namespace

Json quality_sections(const Json& report) {
  Json quality = section("Quality of item features", text_of(report, "note"));
  Json areas = block("bars", "Items by area");
  areas["y"] = "items";
  areas["labels"] = Json::array();
  areas["values"] = Json::array();
  if (const Json& counts = member(report, "areas"); counts.is_object()) {
    const Json& shares = member(report, "area_shares");
    for (const auto& [area, n] : counts.items()) {
      const bool known = shares.is_object() && shares.contains(area);
      areas["labels"].push_back(
          known ? fmt::format("{} ({:.1f} %)", area, 100 * number_of(shares, area.c_str())) : area);
      areas["values"].push_back(n);
    }
  }
  quality["blocks"].push_back(areas);
  const Json& modalities = member(report, "modalities");
  quality["blocks"].push_back(numbers_by_modality(modalities));
  for (const auto& m : modalities) {
    if (!member(m, "histogram").is_object()) continue;
    quality["blocks"].push_back(score_histogram(m));
    quality["blocks"].push_back(scores_by_users(m));
  }
  if (const Json& rounds = member(report, "rounds"); !rounds.empty()) {
    quality["blocks"].push_back(rounds_table(rounds));
  }
  const Json& rewritten = member(report, "rewritten");
  Json changed = section("Rewritten items", fmt::format("{:.0f} rows were rewritten or filled in.",
                                                        number_of(rewritten, "n")));
  for (const auto& [key, why] :
       {std::pair("largest_gain", "Largest gain"), std::pair("smallest_gain", "Smallest gain"),
        std::pair("random", "Drawn at random")}) {
    for (const auto& item : member(rewritten, key)) {
      changed["blocks"].push_back(rewritten_cards(item, why));
    }
  }
  return Json::array({quality, changed, worst_section(member(report, "worst"))});
}

Json forgetting_sections(const std::vector<std::pair<std::string, std::vector<Json>>>& runs) {
  Json kept = block("lines", "Likeness that is kept"), gate = block("lines", "Gate weights");
  kept["x"] = gate["x"] = "epoch";
  kept["y"] = "correlation with the features";
  gate["y"] = "mean weight";
  kept["series"] = gate["series"] = Json::array();
  double low = -0.2;
  size_t n_runs = 0;
  std::map<std::string, size_t> kept_colours, gate_colours;
  for (const auto& [run, lines] : runs) {
    std::map<std::string, Json> points;  // by "panel" and name
    std::vector<std::pair<bool, std::string>> order;
    const auto add = [&](bool is_gate, const std::string& name, const Json& epoch, const Json& y) {
      if (!epoch.is_number() || !y.is_number()) return;
      const std::string key = (is_gate ? "g" : "k") + name;
      if (!points.contains(key)) {
        order.emplace_back(is_gate, name);
        points[key] = Json::array();
      }
      if (!is_gate) low = std::min(low, y.get<double>());
      points[key].push_back(pair_of(epoch, y));
    };
    for (const Json& line : lines) {
      const std::string event = text_of(line, "event");
      const Json& epoch = member(line, "epoch");
      if (event == "forgetting") {
        for (const char* series : {"e", "z", "fused", "id"}) {
          add(false, text_of(line, "modality") + " " + series, epoch, member(line, series));
        }
      } else if (event == "gate") {
        for (const auto& [name, weight] : line.items()) {
          if (name != "epoch") add(true, name, epoch, weight);
        }
      }
    }
    if (order.empty()) continue;
    ++n_runs;
    for (const auto& [is_gate, name] : order) {
      Json one;
      one["name"] = runs.size() > 1 ? run + ": " + name : name;
      one["points"] = points[(is_gate ? "g" : "k") + name];
      if (runs.size() > 1) {
        auto& colours = is_gate ? gate_colours : kept_colours;
        one["colour"] = colours.emplace(name, colours.size()).first->second;
        one["dashed"] = n_runs > 1;
      }
      (is_gate ? gate : kept)["series"].push_back(one);
    }
  }
  if (n_runs == 0) return Json::array();
  kept["range"] = pair_of(low, 1);
  gate["range"] = pair_of(0, 1);
  Json out = section("Modality forgetting",
                     "How far the likeness of 10,000 fixed pairs of items still follows their "
                     "features. e: the table "
                     "that keeps them; z: what the student reads from it; fused: what the "
                     "ranker gets; id: the ids "
                     "alone. A high e says that the table is kept, not that the ranker uses "
                     "it: the gate weights tell "
                     "that. Epoch -1 is before training.");
  for (const auto& panel : {kept, gate}) {
    if (!panel["series"].empty()) out["blocks"].push_back(panel);
  }
  return Json::array({out});
}

Json summary_blocks(const Json& table) {
  Json out = Json::array();
  const Json &columns = member(table, "columns"), &rows = member(table, "rows");
  std::map<std::string, size_t> at;
  for (size_t c = 0; c < columns.size(); ++c) at.emplace(columns[c].get<std::string>(), c);
  if (!at.contains("row") || rows.empty()) return out;
  std::vector<std::string> metrics;
  std::string split;
  for (const std::string& wanted : {std::string("test_"), std::string("valid_")}) {
    for (const auto& column : columns) {
      const auto name = column.get<std::string>();
      if (!name.starts_with(wanted) || !name.ends_with("_mean")) continue;
      metrics.push_back(name.substr(wanted.size(), name.size() - wanted.size() - 5));
    }
    split = wanted;
    if (!metrics.empty()) break;
  }
  if (metrics.empty()) return out;
  const auto cell = [&](const Json& row, const std::string& column) {
    const auto found = at.find(column);
    return found != at.end() && found->second < row.size() ? row[found->second] : Json();
  };
  const auto text = [&](const Json& value) {
    return value.is_string() ? value.get<std::string>() : value.dump();
  };
  std::set<std::string> datasets;
  for (const auto& row : rows) datasets.insert(text(cell(row, "dataset")));
  const bool many = datasets.size() > 1;
  const std::string shown = split.substr(0, split.size() - 1);
  Json means = block("table", fmt::format("Means over seeds, {}", shown));
  means["columns"] = many ? Json::array({"dataset", "row"}) : Json::array({"row"});
  for (const auto& metric : metrics) means["columns"].push_back(metric);
  means["rows"] = Json::array();
  Json spread = block("intervals", fmt::format("Mean and spread over seeds, {}", shown));
  spread["x"] = "mean, one standard deviation to each side";
  spread["rows"] = Json::array();
  for (const auto& row : rows) {
    Json line = Json::array();
    if (many) line.push_back(cell(row, "dataset"));
    line.push_back(cell(row, "row"));
    for (const auto& metric : metrics) {
      const Json mean = cell(row, split + metric + "_mean");
      const Json sd = cell(row, split + metric + "_sd");
      line.push_back(mean);
      if (!mean.is_number()) continue;
      Json one;
      one["label"] =
          (many ? text(cell(row, "dataset")) + ", " : std::string()) + text(cell(row, "row"));
      one["group"] = metric;
      one["value"] = mean;
      one["low"] = sd.is_number() ? Json(mean.get<double>() - sd.get<double>()) : Json();
      one["high"] = sd.is_number() ? Json(mean.get<double>() + sd.get<double>()) : Json();
      spread["rows"].push_back(one);
    }
    means["rows"].push_back(line);
  }
  out.push_back(means);
  if (!spread["rows"].empty()) out.push_back(spread);
  return out;
}

}  // namespace tessera
