#include "tessera/study/quality.h"

#include <algorithm>
#include <array>
#include <map>
#include <numeric>
#include <utility>

#include "tessera/base/error.h"
#include "tessera/folder/folder.h"
#include "tessera/model/offers.h"
#include "tessera/nn/review.h"
#include "tessera/ops/knn.h"

namespace tessera {
namespace {

constexpr int64_t kBins = 40, kNeighbours = 5;
constexpr size_t kShown = 5, kWorst = 100;
constexpr std::array<const char*, 4> kAreas = {"unscored", "low", "disparity", "high"};

using Modality = Quality::Modality;

int64_t count(const torch::Tensor& flags) { return flags.sum().item<int64_t>(); }

double share_of(int64_t n, int64_t n_items) {
  return static_cast<double>(n) / static_cast<double>(std::max<int64_t>(1, n_items));
}

/// What is shown of items: their pictures are those of media.tsv, else of the catalogue's columns.
class Shown {
 public:
  explicit Shown(const TrainView& of) : data(of) {
    if (data.folder.empty()) return;
    try {
      pictures_ = media_files(data.folder, "image");
    } catch (const InputError& e) {  // no reason to lose what was found
      without_pictures = e.what();
    }
  }

  Json json(int64_t item) const {
    const std::string id(data.item_ids[item]);
    Json out = {{"item", id}, {"title", data.item_columns.title(item)}};
    if (const auto found = pictures_.find(id); found != pictures_.end()) {
      out["picture"] = found->second;
      return out;
    }
    for (const char* column : {"image", "picture", "image_path"}) {
      const auto* values = data.item_columns.find(column);
      if (values == nullptr || (*values)[static_cast<size_t>(item)].empty()) continue;
      out["picture"] = (*values)[static_cast<size_t>(item)];
      break;
    }
    return out;
  }

  const TrainView& data;
  std::string without_pictures;  ///< why those of media.tsv are missing

 private:
  std::map<std::string, std::string> pictures_;  // by raw id
};

Json neighbours(const Modality& m, const Shown& shown, const torch::Tensor& table, int64_t item) {
  const auto index = torch::tensor({item}, torch::kInt64);
  const TopK top = nearest_rows(table.index_select(0, index), table,
                                std::min(kNeighbours, shown.data.n_items), index);
  Json out = Json::array();
  for (int64_t j = 0; j < top.items.size(1); ++j) {
    const int64_t other = top.items[0][j].item<int32_t>();
    if (other < 0 || !m.exists[other].item<bool>()) continue;
    Json entry = shown.json(other);
    entry["cosine"] = top.scores[0][j].item<float>();
    out.push_back(std::move(entry));
  }
  return out;
}

std::vector<int64_t> histogram(const torch::Tensor& values, double low, double high) {
  std::vector<int64_t> n(kBins, 0);
  for (int64_t i = 0; i < values.numel(); ++i) {
    const double share = high > low ? (values[i].item<double>() - low) / (high - low) : 0;
    if (std::isnan(share)) continue;
    ++n[static_cast<size_t>(std::min(kBins - 1, static_cast<int64_t>(share * kBins)))];
  }
  return n;
}

Json view(const Modality& m, const Quality& quality, int64_t n_items, int64_t n_all_users) {
  const auto index = m.exists.logical_and(quality.scored).nonzero().flatten();
  const auto s = m.scores.index_select(0, index).to(torch::kFloat64);
  const auto null =
      m.null_scores.index_select(0, m.has_null.nonzero().flatten()).to(torch::kFloat64).flatten();
  Json out = {{"modality", m.name},
              {"eta", m.eta},
              {"consensus", m.consensus},
              {"present", count(m.present)},
              {"missing", n_items - count(m.present)},
              {"filled", count((m.round > 0).logical_and(m.present.logical_not()))},
              {"rewritten", count(m.round > 0)},
              {"scored", index.numel()},
              {"high", count(m.high)},
              {"low", index.numel() - count(m.high)},
              {"unscored", count(m.exists) - index.numel()}};
  for (const char* key : {"high", "low", "unscored", "missing", "filled", "rewritten"}) {
    out["shares"][key] = share_of(out[key].get<int64_t>(), n_items);
  }
  if (index.numel() == 0) return out;
  out["mean"] = s.mean().item<double>();
  if (null.numel() > 0) out["null_mean"] = null.mean().item<double>();
  const auto sorted = std::get<0>(s.sort());
  out["deciles"] = Json::array();
  for (int64_t decile = 1; decile < 10; ++decile) {
    out["deciles"].push_back(sorted[(sorted.numel() - 1) * decile / 10].item<double>());
  }
  const auto both = torch::cat({s, null});
  const double low = both.min().item<double>(), high = both.max().item<double>();
  Json null_bars = Json::array();
  for (const int64_t n : histogram(null, low, high)) {
    null_bars.push_back(static_cast<double>(n) / static_cast<double>(m.null_scores.size(1)));
  }
  out["histogram"] = {
      {"low", low}, {"high", high}, {"scores", histogram(s, low, high)}, {"null", null_bars}};
  out["by_users"] = Json::array();
  const auto users = quality.n_users.index_select(0, index);
  const std::vector<std::pair<int64_t, int64_t>> bands = {
      {1, 2}, {3, 5}, {6, 10}, {11, 20}, {21, 50}, {51, std::max<int64_t>(51, n_all_users)}};
  for (const auto& [from, to] : bands) {
    const auto inside = (users >= from).logical_and(users <= to);
    if (count(inside) == 0) continue;
    const auto part = s.masked_select(inside);
    out["by_users"].push_back({{"users_from", from},
                               {"users_to", to},
                               {"items", part.numel()},
                               {"mean", part.mean().item<double>()},
                               {"std", part.std(/*unbiased=*/false).item<double>()}});
  }
  return out;
}

Json rewritten(const Quality& quality, const Shown& shown, const Random& random) {
  const auto& all = quality.rewrites;
  const auto rows = [&](const std::vector<size_t>& chosen) {
    Json list = Json::array();
    for (const size_t j : chosen) {
      const auto& r = all[j];
      const Modality& m = quality.modalities[static_cast<size_t>(r.modality)];
      Json entry = shown.json(r.item);
      entry["modality"] = m.name;
      entry["source"] = quality.modalities[static_cast<size_t>(r.source)].name;
      entry["round"] = r.round;
      entry["filled"] = !m.present[r.item].item<bool>();
      if (!std::isnan(r.before)) entry["before"] = r.before;
      entry["after"] = r.after;
      entry["neighbours_before"] = neighbours(m, shown, m.before, r.item);
      entry["neighbours_after"] = neighbours(m, shown, m.now, r.item);
      list.push_back(std::move(entry));
    }
    return list;
  };
  std::vector<size_t> order(all.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::vector<size_t> drawn = order;
  random.stream("report.random").shuffle(drawn, 0);
  // Only a row that was there can gain.
  std::erase_if(order, [&](size_t j) { return std::isnan(all[j].before); });
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return all[a].after - all[a].before > all[b].after - all[b].before;
  });
  const auto few = static_cast<std::ptrdiff_t>(std::min(kShown, order.size()));
  const auto few_drawn = static_cast<std::ptrdiff_t>(std::min(kShown, all.size()));
  return {{"n", all.size()},
          {"largest_gain", rows({order.begin(), order.begin() + few})},
          {"smallest_gain", rows({order.end() - few, order.end()})},
          {"random", rows({drawn.begin(), drawn.begin() + few_drawn})}};
}

/// Items whose row is present, scored below eta and not rewritten, the lowest first; none of a
/// modality without consensus, whose scores say nothing.
Json worst(const Modality& m, const Quality& quality, const Shown& shown) {
  if (!m.consensus) return Json::array();
  const auto items = m.present.logical_and(quality.scored)
                         .logical_and(m.round == 0)
                         .logical_and(m.high.logical_not())
                         .nonzero()
                         .flatten();
  std::vector<std::pair<float, int64_t>> low;
  for (int64_t j = 0; j < items.numel(); ++j) {
    const int64_t item = items[j].item<int64_t>();
    low.emplace_back(m.scores[item].item<float>(), item);
  }
  std::sort(low.begin(), low.end());
  low.resize(std::min(kWorst, low.size()));
  Json list = Json::array();
  for (const auto& [score, item] : low) {
    Json entry = shown.json(item);
    entry["score"] = score;
    entry["null_score"] = m.null_scores[item].mean().item<float>();
    entry["users"] = quality.n_users[item].item<int64_t>();
    list.push_back(std::move(entry));
  }
  return list;
}

}  // namespace

std::string quality_tsv(const Quality& quality, const TrainView& data) {
  std::map<std::pair<int64_t, int64_t>, const Quality::Rewrite*> by_row;
  for (const auto& r : quality.rewrites) by_row[{r.item, r.modality}] = &r;
  std::string out =
      "item\tmodality\tpresent\tscore\tnull_score\tarea\tstatus\tround\tsource\tscore_before\n";
  for (int64_t i = 0; i < data.n_items; ++i) {
    const auto area = static_cast<size_t>(quality.area[i].item<int64_t>());
    for (size_t m = 0; m < quality.modalities.size(); ++m) {
      const Modality& of = quality.modalities[m];
      const auto found = by_row.find({i, static_cast<int64_t>(m)});
      const bool present = of.present[i].item<bool>();
      const bool has_score = quality.scored[i].item<bool>() && of.exists[i].item<bool>();
      const auto number = [](const torch::Tensor& x, bool there) {
        return there ? fmt::format("{:.6f}", x.mean().item<float>()) : std::string();
      };
      out += fmt::format("{}\t{}\t{}\t{}\t{}\t{}\t{}", data.item_ids[i], of.name, present ? 1 : 0,
                         number(of.scores[i], has_score),
                         number(of.null_scores[i], of.has_null[i].item<bool>()), kAreas.at(area),
                         found != by_row.end() ? "rewritten"
                         : present             ? "original"
                                               : "missing");
      if (found == by_row.end()) {
        out += "\t\t\t\n";
        continue;
      }
      const auto& r = *found->second;
      out += fmt::format("\t{}\t{}\t{}\n", r.round,
                         quality.modalities[static_cast<size_t>(r.source)].name,
                         std::isnan(r.before) ? "" : fmt::format("{:.6f}", r.before));
    }
  }
  return out;
}

Json quality_report(const std::string& model, const Quality& quality, const TrainView& data) {
  const torch::NoGradGuard no_grad;
  const Shown shown(data);
  Json out = {{"model", model}, {"dataset", data.name}, {"seed", quality.seed}};
  out["note"] =
      "a score compares an item's features with its users' taste: niche items score low without "
      "being broken, and an item with few users has a noisy score";
  if (!shown.without_pictures.empty()) out["without_pictures"] = shown.without_pictures;
  out["areas"] = Json::object();
  out["area_shares"] = Json::object();
  for (size_t area = kAreas.size(); area-- > 0;) {
    const int64_t n = count(quality.area == static_cast<int64_t>(area));
    out["areas"][kAreas[area]] = n;
    out["area_shares"][kAreas[area]] = share_of(n, data.n_items);
  }
  out["modalities"] = Json::array();
  out["worst"] = Json::object();
  for (const auto& m : quality.modalities) {
    out["modalities"].push_back(view(m, quality, data.n_items, data.n_users));
    out["worst"][m.name] = worst(m, quality, shown);
  }
  out["rewritten"] = rewritten(quality, shown, Random(quality.seed));
  out["rounds"] = quality.rounds;
  return out;
}

std::map<std::string, std::string> quality_files(const std::string& name, Model& model) {
  Reporter* reporter = model.offers().report;
  const auto found = reporter != nullptr ? reporter->quality() : std::nullopt;
  if (!found) return {};
  const Json report = quality_report(name, *found, model.data());
  return {{"quality.tsv", quality_tsv(*found, model.data())},
          {"quality.json", report.dump(1, ' ', false, Json::error_handler_t::replace) + "\n"}};
}

}  // namespace tessera
