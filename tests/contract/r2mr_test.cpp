// What R2MR must do beyond the contract of every model: specs r2mr sections 11 (one seed of swap)
// and 13.
#include <sstream>

#include "tessera/base/error.h"
#include "tessera/model/bundle.h"
#include "tessera/model/offers.h"
#include "tessera/nn/review.h"
#include "tessera/ops/fill.h"
#include "tessera/ops/unit_rows.h"
#include "tests/contract/training.h"
#include "tests/r2mr_experiment.h"

namespace tessera {
namespace {

const Settings kTiny = {{"preset", "tiny", "test"}, {"feature_scale", "none", "test"}};

TEST(R2mrPlanted, FindsAndRepairsSwappedRows) {
  const Damage damage("swap", 1);
  const Repair repair = repaired(damage, kTiny);
  EXPECT_GE(repair.auc_before, .80);
  EXPECT_GE(repair.auc_text, .35);
  EXPECT_LE(repair.auc_text, .65);
  EXPECT_GE(repair.damaged_low, .50);
  EXPECT_LE(repair.clean_low, .20);
  EXPECT_GE(repair.damaged_rewritten, .35);
  EXPECT_LE(repair.clean_rewritten, .08);
  EXPECT_GE(repair.cosine, .40);
  EXPECT_GE(repair.cosine, repair.cosine_mean + .30);
  EXPECT_GE(repair.cosine, repair.cosine_kept + .30);
  EXPECT_GE(repair.worst_damaged, .60);
  EXPECT_GE(repair.cosine,
            .75 * repaired(damage, with(kTiny, {{"rewriter", "ridge", "test"}})).cosine);
}

TEST(R2mrPlanted, FindsNoConsensusInPermutedRows) {
  Dataset data = planted_pairs({});
  corrupt(data, "image", "swap", 1.0);  // every row, one further
  auto made = make_r2mr(data, kTiny);
  made->supplier().fit(Watch{});
  const Json report = made->report(), image = report["modalities"][0];
  EXPECT_LE(image["mean"].get<double>(), .52);
  EXPECT_FALSE(image["consensus"].get<bool>());
  EXPECT_GT(image["low"].get<int64_t>(), 0);
  EXPECT_TRUE(report["worst"]["image"].empty());  // its scores say nothing
  EXPECT_EQ(image["rewritten"], 0);
}

TEST(R2mrReview, NoReviewerIsAskedAboutWhatItWasTaught) {
  const Dataset data = planted_pairs({.n_users = 60, .n_items = 120, .mean_rows = 5});
  const auto graph_of = [&](const std::vector<std::pair<int32_t, int32_t>>& without) {
    std::vector<int64_t> offsets = {0};
    std::vector<int32_t> items;
    for (int64_t u = 0; u < data.n_users; ++u) {
      for (const int32_t i : data.train_distinct.of(u)) {
        const std::pair edge(static_cast<int32_t>(u), i);
        if (std::find(without.begin(), without.end(), edge) == without.end()) items.push_back(i);
      }
      offsets.push_back(static_cast<int64_t>(items.size()));
    }
    return BipartiteGraph(torch::tensor(offsets, torch::kInt64),
                          torch::tensor(items, torch::kInt32), data.n_items);
  };
  const ReviewForm form{16, 2, false, true, false, false, .3};
  const std::vector<torch::Tensor> rows = {normal(data.n_items, 16, 0, 1, Random(3))};
  const auto review = [&](const BipartiteGraph& graph) {
    CrossReviewer reviewer(graph, {"image"}, form, Random(4));
    std::array<int64_t, 2> steps = {100, 100};
    for (int epoch = 0; epoch < 3; ++epoch) reviewer.train_epoch(rows, steps);
    return reviewer;
  };
  const CrossReviewer whole = review(graph_of({}));
  std::vector<std::pair<int32_t, int32_t>> taught[2];
  for (int64_t f = 0; f < 2; ++f) {
    const auto dense = whole.taught(f).dense() > 0;
    EXPECT_FALSE(dense.logical_and(whole.asked(f).dense() > 0).any().item<bool>());
    const auto edges = dense.nonzero();
    for (int64_t e = 0; e < edges.size(0); ++e) {
      taught[f].emplace_back(edges[e][0].item<int32_t>(), edges[e][1].item<int32_t>());
    }
  }
  EXPECT_EQ(taught[0].size() + taught[1].size(), static_cast<size_t>(graph_of({}).n_edges()));
  // Items that reviewer 0 is asked nothing about, and half of the fold 0 edges of the others.
  const auto alone = whole.asked(0).parts().item_offsets.diff() == 0;
  std::vector<std::pair<int32_t, int32_t>> gone;
  for (size_t e = 0; e < taught[0].size(); e += 2) {
    if (!alone[taught[0][e].second].item<bool>()) gone.push_back(taught[0][e]);
  }
  ASSERT_GT(gone.size(), 10u);
  const CrossReviewer less = review(graph_of(gone));
  const auto before = whole.scores(whole.projected_tastes(), 0, rows[0]),
             after = less.scores(less.projected_tastes(), 0, rows[0]);
  const auto same = alone.logical_and(whole.n_counted() > 0).nonzero().flatten();
  ASSERT_GT(same.numel(), 3);
  EXPECT_TRUE(torch::equal(before.index_select(0, same), after.index_select(0, same)));
  EXPECT_FALSE(torch::equal(before, after));
}

/// Rows that were missing and are filled; bool [n_items, M].
torch::Tensor filled_rows(MadeR2mr& made, const Dataset& data) {
  std::vector<torch::Tensor> present;
  for (const auto& feature : data.features) present.push_back(feature.present());
  return (made.weights().at("round_of") > 0).logical_and(torch::stack(present, 1).logical_not());
}

TEST(R2mrRounds, ThreeModalitiesFillWhatIsMissing) {
  const Dataset data = planted_pairs({.n_modalities = 3, .missing = .2});
  auto made = make_r2mr(data, kTiny);
  const auto prompts = made->state().at("gan.prompts").clone();
  made->supplier().fit(Watch{});
  const Json report = made->report();
  int64_t filled = 0;
  for (const auto& modality : report["modalities"]) filled += modality["filled"].get<int64_t>();
  EXPECT_GT(filled, 0);
  const auto exported = made->supplier().export_features({});
  ASSERT_EQ(exported.size(), 3u);
  int64_t rows = 0;
  for (const auto& part : exported) rows += part.items.numel();
  EXPECT_EQ(rows, 3 * 400 + filled);
  // All six directions learned: each prompt moved, and not by weight decay alone.
  const auto state = made->state();
  ASSERT_EQ(prompts.size(0), 6);
  for (int64_t direction = 0; direction < 6; ++direction) {
    EXPECT_FALSE(torch::equal(state.at("gan.prompts")[direction], prompts[direction])) << direction;
    EXPECT_GT(state.at("gan.adam.gan.prompts.v")[direction].min().item<double>(), 0) << direction;
  }
  // Every row that was filled went through the gate.
  const auto weights = made->weights();
  const auto is_filled = filled_rows(*made, data);
  EXPECT_EQ(is_filled.sum().item<int64_t>(), filled);
  const auto above = weights.at("score_after").to(torch::kFloat64) > weights.at("eta");
  EXPECT_TRUE(above.masked_select(is_filled).all().item<bool>());
  // missing = ignore: never a target.
  auto ignoring = make_r2mr(data, with(kTiny, {{"missing", "ignore", "test"}}));
  ignoring->supplier().fit(Watch{});
  for (const auto& modality : ignoring->report()["modalities"]) {
    EXPECT_EQ(modality["filled"], 0);
  }
}

// No score is above 1, so an image is proposed for every item and none is accepted.
TEST(R2mrRounds, AGateThatAcceptsNoneFillsNone) {
  const Dataset data = planted_pairs({.n_modalities = 3, .missing = .2});
  auto made =
      make_r2mr(data, with(kTiny, {{"eta", "0,image=1", "test"}, {"first_epochs", 10, "test"}}));
  made->supplier().fit(Watch{});
  const Json round = made->report()["rounds"].back();
  EXPECT_EQ(round["accepted"]["image"], 0);
  EXPECT_GT(round["refused"]["image"].get<int64_t>(), 400);
  const auto filled = filled_rows(*made, data).sum(0);
  EXPECT_EQ(filled[0].item<int64_t>(), 0);
  EXPECT_GT(filled[1].item<int64_t>(), 0);
  EXPECT_EQ(made->supplier().export_features({})[0].items.numel(), 400);
}

// A row that was filled in the last round has no null score, and none is invented.
TEST(R2mrReport, NullScoresLeaveOutWhatWasFilledSince) {
  const Dataset data = planted_pairs({.n_modalities = 3, .missing = .2});
  auto made = make_r2mr(data, kTiny);
  made->supplier().fit(Watch{});
  const Json report = made->report();
  const auto filled = filled_rows(*made, data);
  const auto null = made->weights().at("null_scores");
  const auto scores = made->weights().at("scores");
  for (int64_t m = 0; m < 3; ++m) {
    const Json& view = report["modalities"][static_cast<size_t>(m)];
    ASSERT_GT(view["filled"].get<int64_t>(), 0);
    const auto known = filled.select(1, m)
                           .logical_not()
                           .logical_and(data.features[static_cast<size_t>(m)].present())
                           .logical_and(scores.select(1, m) > 0);
    const auto values = null.select(1, m).index_select(0, known.nonzero().flatten());
    ASSERT_EQ(values.size(1), 4);
    EXPECT_GT(values.min().item<double>(), 0);
    EXPECT_NEAR(view["null_mean"].get<double>(), values.to(torch::kFloat64).mean().item<double>(),
                1e-12);
    // Each draw is a null of its own; their mean would be narrower than the scores can be.
    const auto& bars = view["histogram"]["null"];
    const double low = view["histogram"]["low"], high = view["histogram"]["high"];
    std::vector<double> wanted(bars.size(), 0.0);
    const auto all = values.flatten().to(torch::kFloat64);
    for (int64_t j = 0; j < all.numel(); ++j) {
      const auto n_bars = static_cast<int64_t>(bars.size());
      const auto bar = static_cast<int64_t>((all[j].item<double>() - low) / (high - low) * n_bars);
      wanted[static_cast<size_t>(std::min(n_bars - 1, bar))] += .25;
    }
    EXPECT_EQ(bars.get<std::vector<double>>(), wanted);
    const auto n = values.size(0);
    EXPECT_EQ(n, view["scored"].get<int64_t>() - view["filled"].get<int64_t>());
    EXPECT_GT(view["histogram"]["low"].get<double>(), 0);
  }
  const std::string text = quality_files("R2MR", *made->model)["quality.tsv"];
  std::istringstream lines(text);
  std::string line;
  std::getline(lines, line);
  int64_t empty = 0;
  while (std::getline(lines, line)) {
    std::vector<std::string> cells;
    std::istringstream row(line);
    for (std::string cell; std::getline(row, cell, '\t');) cells.push_back(cell);
    if (cells[6] == "rewritten" && cells[2] == "0") {
      EXPECT_EQ(cells[4], "") << line;
      EXPECT_NE(cells[3], "") << line;
      ++empty;
    } else if (cells[6] != "missing" && cells[5] != "unscored") {
      EXPECT_GT(std::stod(cells[4]), 0) << line;
    }
  }
  EXPECT_EQ(empty, filled.sum().item<int64_t>());
}

TEST(R2mrReport, SharesStandBesideCounts) {
  const Dataset data = planted_pairs({.missing = .2, .n_cold = 20});
  auto made = make_r2mr(data, with(kTiny, {{"rewrite_max", 0, "test"}}));
  made->supplier().fit(Watch{});
  const Json report = made->report();
  double sum = 0;
  for (const auto& [area, n] : report["areas"].items()) {
    const double share = report["area_shares"][area].get<double>();
    EXPECT_DOUBLE_EQ(share, n.get<double>() / 500) << area;
    sum += share;
  }
  EXPECT_NEAR(sum, 1, 1e-12);
  for (const auto& view : report["modalities"]) {
    for (const char* key : {"high", "low", "unscored", "missing", "filled", "rewritten"}) {
      EXPECT_DOUBLE_EQ(view["shares"][key].get<double>(), view[key].get<double>() / 500) << key;
    }
    EXPECT_EQ(view["high"].get<int64_t>() + view["low"].get<int64_t>() +
                  view["unscored"].get<int64_t>() + view["missing"].get<int64_t>(),
              500);
    EXPECT_DOUBLE_EQ(view["shares"]["missing"].get<double>(), .2);
  }
}

// A run goes on after its best epoch and then returns to it: its later rounds are marked.
TEST(R2mrReport, MarksRoundsAfterTheBestEpoch) {
  const Damage damage("swap", 1);
  const Settings settings = with(kTiny, {{"epochs", 6, "test"},
                                         {"rewrite_every", 1, "test"},
                                         {"first_epochs", 10, "test"},
                                         {"later_epochs", 5, "test"}});
  const ModelInfo& info = find_model("R2MR");
  // Steps as long as these ruin the ranking: the best epoch is an early one.
  for (const double rate : {1e-3, 1.0}) {
    Trained trained(info, damage.data, with(settings, {{"learning_rate", rate, "test"}}));
    const Json rounds = report_of(*trained.model)["rounds"];
    ASSERT_EQ(rounds.size(), 6u);
    for (const auto& round : rounds) {
      EXPECT_EQ(round["kept"], round["epoch"].get<int64_t>() <= trained.result.best_epoch)
          << round["round"] << " best epoch " << trained.result.best_epoch;
    }
    if (rate == 1.0) {
      EXPECT_LT(trained.result.best_epoch, 5);
    }
  }
}

// reviewer = bpr has learned on since the last round: null, threshold and scores are of one
// reviewer.
TEST(R2mrReport, ThePublishedReviewerIsAskedAnew) {
  const Damage damage("swap", 1);
  Trained trained(
      find_model("R2MR"), damage.data,
      with(kTiny,
           {{"reviewer", "bpr", "test"}, {"rewrite_every", 0, "test"}, {"epochs", 8, "test"}}));
  const Json report = report_of(*trained.model);
  for (const auto& view : report["modalities"]) {
    // eta = auto stands half way between the null's mean and the median.
    EXPECT_NEAR(2 * view["eta"].get<double>() - view["null_mean"].get<double>(),
                view["deciles"][4].get<double>(), 4e-3);
  }
  EXPECT_EQ(report, report_of(*trained.model));
}

// reviewer = random, "rewrite a random set of equal size, accept all": as many pairs as the real
// reviewer accepts, but others. The neighbours' mean learns nothing from what is called high.
TEST(R2mrRounds, NoReviewerRewritesAsManyAsTheReviewerWould) {
  Dataset data = planted_pairs({.n_modalities = 3, .missing = .1});
  corrupt(data, "image", "swap", .3);
  const auto fitted = [&](const char* reviewer, const Settings& more) {
    auto made = make_r2mr(data, with(with(kTiny, more), {{"rewriter", "neighbours", "test"},
                                                         {"reviewer", reviewer, "test"}}));
    made->supplier().fit(Watch{});
    return made;
  };
  for (const Settings& more :
       std::vector<Settings>{{}, {{"missing", "ignore", "test"}}, {{"eta", "0.55", "test"}}}) {
    auto own = fitted("consensus", more), any = fitted("random", more);
    const Json wanted = own->report(), found = any->report();
    const Json &asked = wanted["rounds"].back(), &drawn = found["rounds"].back();
    EXPECT_EQ(drawn["accepted"], asked["accepted"]);
    EXPECT_EQ(drawn["areas"], asked["areas"]);
    for (const auto& [modality, n] : drawn["refused"].items()) EXPECT_EQ(n, 0) << modality;
    EXPECT_EQ(found["rewritten"]["n"], wanted["rewritten"]["n"]);
    EXPECT_GT(found["rewritten"]["n"].get<int64_t>(), 20);
    const auto a = own->weights().at("round_of"), b = any->weights().at("round_of");
    EXPECT_FALSE(torch::equal(a, b));
  }
}

TEST(R2mrRounds, WithoutARecommenderOneRoundOrNone) {
  const Damage damage("swap", 1);
  const auto rounds_of = [&](const Settings& more) {
    auto made = make_r2mr(damage.data, with(with(kTiny, {{"first_epochs", 10, "test"}}), more));
    made->supplier().fit(Watch{});
    const Json report = made->report();
    return std::pair(report["rounds"].size(), report["rewritten"]["n"].get<int64_t>());
  };
  EXPECT_EQ(rounds_of({}).first, 2u);  // the areas after the warm-up, and one round
  EXPECT_GT(rounds_of({}).second, 0);
  for (const char* name : {"rewrite_every", "rewrite_max"}) {
    EXPECT_EQ(rounds_of({{name, 0, "test"}}), (std::pair<size_t, int64_t>(1, 0))) << name;
  }
}

TEST(R2mrRounds, OneModalityIsReportedOnly) {
  const Dataset data = planted_pairs({.n_modalities = 1, .n_cold = 20});
  auto made = make_r2mr(data, kTiny);
  made->supplier().fit(Watch{});
  const Json report = made->report();
  EXPECT_EQ(report["rounds"].size(), 1u);  // the areas after the warm-up
  EXPECT_EQ(report["rewritten"]["n"], 0);
  EXPECT_EQ(report["areas"]["unscored"], 20);
  EXPECT_EQ(report["areas"]["disparity"], 0);
  EXPECT_EQ(made->supplier().export_features({}).size(), 1u);
}

TEST(R2mrRounds, SmallDataAndEmptyAreasDoNoHarm) {
  for (const char* eta : {"0", "1", "auto"}) {
    const Dataset data = small_data(2);
    Trained trained(find_model("R2MR"), data,
                    {{"epochs", 3, "test"}, {"rewrite_every", 1, "test"}, {"eta", eta, "test"}});
    EXPECT_TRUE(trained.scores().isfinite().all().item<bool>()) << eta;
  }
}

// Enough items to learn from, so that it is the areas that end a round.
TEST(R2mrRounds, EmptyAreasAndAreasOfOneItem) {
  const Dataset data = planted_pairs({.n_users = 200, .n_items = 150});
  const auto round_of = [&](const std::string& eta) {
    auto made = make_r2mr(data, with(kTiny, {{"eta", eta, "test"}, {"first_epochs", 10, "test"}}));
    made->supplier().fit(Watch{});
    return std::pair(made->report()["rounds"].back(), made->weights().at("scores"));
  };
  const auto [all, scores] = round_of("0");
  EXPECT_EQ(all["areas"]["high"], 150);
  EXPECT_EQ(all["skipped"], "no disparity");
  const auto [none, same] = round_of("1");
  EXPECT_EQ(none["areas"]["low"], 150);
  EXPECT_EQ(none["skipped"], "too few items");
  EXPECT_TRUE(torch::equal(scores, same));
  // A threshold between the lowest image and the next, none of the text: one item to rewrite.
  const auto sorted = std::get<0>(scores.select(1, 0).to(torch::kFloat64).sort());
  ASSERT_LT(sorted[0].item<double>(), sorted[1].item<double>());
  const auto [one, after] =
      round_of(fmt::format("0,image={:.9f}", (sorted[0] + sorted[1]).item<double>() / 2));
  EXPECT_EQ(one["areas"]["disparity"], 1);
  EXPECT_EQ(one["areas"]["high"], 149);
  EXPECT_FALSE(one.contains("skipped"));
  EXPECT_EQ(one["accepted"]["image"].get<int64_t>() + one["refused"]["image"].get<int64_t>(), 1);
  EXPECT_EQ(one["accepted"]["text"].get<int64_t>() + one["refused"]["text"].get<int64_t>(), 0);
  // And one item to learn from.
  const auto [few, unused] =
      round_of(fmt::format("0,image={:.9f}", (sorted[148] + sorted[149]).item<double>() / 2));
  EXPECT_EQ(few["areas"]["high"], 1);
  EXPECT_EQ(few["skipped"], "too few items");

  // Within a training: ranking goes on, and the log has every round.
  for (const char* eta : {"0", "1"}) {
    Trained trained(
        find_model("R2MR"), data,
        with(kTiny, {{"epochs", 3, "test"}, {"rewrite_every", 1, "test"}, {"eta", eta, "test"}}));
    EXPECT_TRUE(trained.scores().isfinite().all().item<bool>()) << eta;
    const Json rounds = report_of(*trained.model)["rounds"];
    ASSERT_EQ(rounds.size(), 3u);
    for (size_t r = 1; r < 3; ++r) EXPECT_TRUE(rounds[r].contains("skipped")) << eta;
  }
}

TEST(R2mrExport, RawRowsStayAndRestoreGivesTheOriginals) {
  const Damage damage("swap", 1);
  auto made = make_r2mr(damage.data, kTiny);
  EXPECT_THROW(made->supplier().export_features({}), InputError);
  made->supplier().fit(Watch{});
  const auto round_of = made->weights()["round_of"];
  EXPECT_GT((round_of > 0).sum().item<int64_t>(), 0);
  auto raw = made->supplier().export_features({{"export_space", "raw"}});
  auto restored = made->supplier().export_features({{"export_space", "raw"}, {"restore", true}});
  auto weighted = made->supplier().export_features({{"export_weight", "score"}});
  const auto plain = made->supplier().export_features({});
  for (size_t m = 0; m < 2; ++m) {
    const auto& feature = damage.data.features[m];
    EXPECT_EQ(raw[m].modality, feature.name + "_r2mr");
    EXPECT_EQ(raw[m].rows.size(1), feature.width());
    EXPECT_TRUE(torch::equal(restored[m].rows, feature.all()));
    const auto changed = round_of.select(1, static_cast<int64_t>(m)) > 0;
    EXPECT_TRUE(torch::equal((raw[m].rows != feature.all()).any(1), changed));
    const auto s = made->weights()["scores"].select(1, static_cast<int64_t>(m)).unsqueeze(1);
    EXPECT_TRUE(torch::allclose(weighted[m].rows, plain[m].rows * s));
    EXPECT_EQ(plain[m].card["train_sha256"], train_sha256(damage.data.view()));
  }
  // Back to the model's space with the original tables, bit for bit.
  // Original rows times the scores of others say nothing: refused before any work, and of a run.
  EXPECT_THROW(
      make_r2mr(damage.data, {{"restore", true, "test"}, {"export_weight", "score", "test"}}),
      InputError);
  EXPECT_THROW(made->supplier().export_features({{"restore", true}, {"export_weight", "score"}}),
               InputError);
  const auto model_space = made->supplier().export_features({{"restore", true}});
  EXPECT_TRUE(torch::equal(model_space[0].rows,
                           made->state()["image.original"].index_select(0, model_space[0].items)));
  EXPECT_THROW(made->supplier().export_features({{"export_spice", "raw"}}), InputError);

  // Other models take the files as any others.
  Dataset data = planted_pairs({});
  data.features.clear();
  for (const auto& part : plain) {
    Feature f;
    f.name = part.modality;
    f.rows = MappedArray(part.rows);
    f.row_of_item = torch::arange(data.n_items, torch::kInt32);
    data.features.push_back(std::move(f));
  }
  for (const char* name : {"BM3", "VBPR"}) {
    Trained other(find_model(name), data, {{"epochs", 1, "test"}});
    EXPECT_TRUE(other.scores().isfinite().all().item<bool>()) << name;
  }
}

TEST(R2mrExport, QualityTableHasARowForEachItemAndModality) {
  const Damage damage("noise", 2);
  auto made = make_r2mr(damage.data, kTiny);
  made->supplier().fit(Watch{});
  const Json report = made->report();
  const auto files = quality_files("R2MR", *made->model);
  const std::string& text = files.at("quality.tsv");
  EXPECT_EQ(Json::parse(files.at("quality.json")), report);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2 * damage.data.n_items + 1);
  EXPECT_EQ(text.substr(0, 5), "item\t");
  int64_t rewritten = 0;
  for (size_t at = 0; (at = text.find("\trewritten\t", at)) != std::string::npos; ++at) ++rewritten;
  EXPECT_EQ(rewritten, report["rewritten"]["n"].get<int64_t>());
  EXPECT_GT(rewritten, 0);
  EXPECT_EQ(report["rewritten"]["largest_gain"][0]["neighbours_after"].size(), 5u);
}

// No other machine's eigenvectors or neighbours: what was fitted to the features is in the file.
TEST(R2mrBundle, StoresThePcaAndTheItemGraph) {
  const Dataset data = planted_pairs({.n_users = 100, .n_items = 120, .missing = .1});
  const Settings graph = with(kTiny, {{"item_graph", true, "test"}, {"rewrite_max", 0, "test"}});
  auto made = make_r2mr(data, graph);
  made->supplier().fit(Watch{});
  const auto scores_of = [&](MadeR2mr& one) {
    const torch::NoGradGuard no_grad;
    one.model->train(true);
    one.model->train(false);
    return one.model->score({torch::arange(data.n_users, torch::kInt64), {}});
  };
  const auto scores = scores_of(*made);
  State state;
  made->model->state(state);
  const State::Saved saved = state.save(true);
  const auto loaded = [&](const Settings& settings, const State::Saved& from) {
    auto out = make_r2mr(data, settings);
    State to;
    out->model->state(to);
    to.load(from, true);
    return out;
  };
  EXPECT_TRUE(torch::equal(scores_of(*loaded(graph, saved)), scores));
  State::Saved changed = saved;
  changed.weights.at("similar.weights") = torch::zeros_like(saved.weights.at("similar.weights"));
  const auto plain = with(graph, {{"item_graph", false, "test"}});
  EXPECT_TRUE(torch::equal(scores_of(*loaded(graph, changed)), scores_of(*loaded(plain, saved))));
  EXPECT_FALSE(torch::equal(scores_of(*loaded(graph, changed)), scores));
  changed = saved;
  changed.weights.at("image.pca.axes") = -saved.weights.at("image.pca.axes");
  const auto rows = [](MadeR2mr& one) {
    return one.supplier().export_features({{"restore", true}})[0].rows;
  };
  EXPECT_TRUE(torch::equal(rows(*loaded(graph, changed)), -rows(*made)));
  changed.weights.at("image.pca.axes") = saved.weights.at("image.pca.axes").slice(0, 1).clone();
  EXPECT_THROW(rows(*loaded(graph, changed)), InputError);
  changed = saved;
  changed.weights.at("similar.items") = saved.weights.at("similar.items") + 1;
  EXPECT_THROW(scores_of(*loaded(graph, changed)), InputError);
  // Files that were written before have neither.
  changed = saved;
  std::erase_if(changed.weights, [](const auto& entry) {
    return entry.first.find(".pca.") != std::string::npos || entry.first.starts_with("similar.");
  });
  EXPECT_EQ(saved.weights.size() - changed.weights.size(), 2u * 3 + 3);
  const auto old = loaded(graph, changed);
  EXPECT_TRUE(torch::equal(scores_of(*old), scores));
  EXPECT_TRUE(torch::equal(rows(*old), rows(*made)));
}

// What was rewritten, from what, with which scores, and the rows before it, come out of a bundle.
TEST(R2mrBundle, KeepsTheRecordsOfWhatWasRewritten) {
  const Damage damage("swap", 1);
  Trained trained(find_model("R2MR"), damage.data,
                  with(kTiny, {{"epochs", 2, "test"}, {"rewrite_every", 1, "test"}}));
  const fs::path folder = scratch("r2mr_bundle");
  save_bundle(folder, *trained.model, trained.data, find_model("R2MR"), trained.settings,
              Json::object());
  const Bundle bundle = load_bundle(folder);
  Json before = report_of(*trained.model);
  Json after = report_of(*bundle.model);
  EXPECT_GT(before["rewritten"]["n"], 0);
  EXPECT_EQ(before["rewritten"], after["rewritten"]);
  EXPECT_EQ(before["worst"], after["worst"]);
  Json kept = Json::array();
  for (const auto& round : before["rounds"]) {
    if (round["kept"].get<bool>()) kept.push_back(round);
  }
  EXPECT_FALSE(kept.empty());
  EXPECT_EQ(after["rounds"], kept);
  EXPECT_EQ(quality_files("R2MR", *trained.model)["quality.tsv"],
            quality_files("R2MR", *bundle.model)["quality.tsv"]);
  for (const bool restore : {false, true}) {
    for (const char* space : {"model", "raw"}) {
      const Json options = {{"restore", restore}, {"export_space", space}};
      const auto ours = dynamic_cast<FeatureSupplier&>(*trained.model).export_features(options);
      const auto theirs = dynamic_cast<FeatureSupplier&>(*bundle.model).export_features(options);
      for (size_t m = 0; m < 2; ++m) {
        EXPECT_TRUE(torch::equal(ours[m].rows, theirs[m].rows)) << restore << space;
      }
    }
  }
  fs::remove_all(folder);
}

// A run that is killed, or asked to stop, in the middle of a rewriting round, or of the review
// before the training or before a round.
TEST(R2mrResume, InsideARoundEndsBitEqual) {
  const Damage damage("swap", 3);
  const ModelInfo& info = find_model("R2MR");
  const Settings settings = with(
      kTiny, {{"epochs", 4, "test"}, {"rewrite_every", 1, "test"}, {"rewrite_max", 2, "test"}});
  struct Killed {};
  std::vector<int64_t> bars;  // of each review: its ticks
  const auto run = [&](const fs::path& folder, bool resume, int64_t kill_at, int64_t stop_at,
                       const std::string& counted) {
    fs::create_directories(folder);
    const RunSettings resolved = resolve_settings(info, settings);
    auto model =
        info.make(settings, Context{damage.data.view(), Random(999), resolved.train_settings, {}});
    TrainConfig config = training(settings, info, folder);
    config.resume = resume;
    auto seen = std::make_shared<int64_t>(0);
    config.progress = [=, &bars](const std::string& name, int64_t) {
      Progress progress;
      if (name == "review") bars.push_back(0);
      progress.advance = [=, &bars](int64_t n) {
        if (name == "review") bars.back() += n;
        if (name != counted) return;
        *seen += n;
        if (*seen == kill_at) throw Killed{};
      };
      return progress;
    };
    config.stop_requested = [=] { return stop_at > 0 && *seen >= stop_at; };
    train_model(*model, damage.data, config);
    State state;
    model->state(state);
    return state.save();
  };
  const fs::path whole = scratch("r2mr_whole");
  const State::Saved unbroken = run(whole, false, 0, 0, "");
  ASSERT_GE(bars.size(), 2);
  ASSERT_GE(bars[0], 3);
  ASSERT_GE(bars[1], 2);
  const int64_t warm_up = bars[0];
  ASSERT_GT((unbroken.weights.at("round_of") > 0).sum().item<int64_t>(), 0);
  struct Break {
    std::string counted;
    int64_t kill_at, stop_at;
  };
  const std::string round = "rewriter, round 1", review = "review";
  // The last two: in the warm-up, and in the refresh before the first round.
  for (const auto& at : std::vector<Break>{
           {round, 60, 0}, {round, 0, 57}, {review, 0, 2}, {review, 0, warm_up + 1}}) {
    const std::string what = fmt::format("{} {} {}", at.counted, at.kill_at, at.stop_at);
    const fs::path broken = scratch("r2mr_broken");
    if (at.kill_at > 0) {
      EXPECT_THROW(run(broken, false, at.kill_at, 0, at.counted), Killed) << what;
    } else {
      EXPECT_THROW(run(broken, false, 0, at.stop_at, at.counted), RunError) << what;
    }
    const State::Saved resumed = run(broken, true, 0, 0, round);
    for (const auto& [name, tensor] : unbroken.weights) {
      EXPECT_TRUE(torch::equal(tensor, resumed.weights.at(name))) << what << ": " << name;
    }
    for (const auto& [name, tensor] : unbroken.optimizer) {
      EXPECT_TRUE(torch::equal(tensor, resumed.optimizer.at(name))) << what << ": " << name;
    }
    EXPECT_EQ(unbroken.values, resumed.values) << what;
    EXPECT_EQ(without_times(whole / "metrics.jsonl"), without_times(broken / "metrics.jsonl"))
        << what;
    fs::remove_all(broken);
  }
  fs::remove_all(whole);
}

// r2mr section 5: item + S item, S the weighted mean (image .1, text .9) of the graphs of the five
// nearest items (itself among them) by cosine, each normalised by its degrees: 1/5 an entry.
TEST(R2mrVariants, ItemGraphAddsTheNeighboursVectors) {
  const Damage damage("swap", 1);
  const auto vectors = [&](const Settings& settings) {
    auto made = make_r2mr(damage.data, settings);
    made->supplier().fit(Watch{});
    made->model->train(false);
    return dynamic_cast<FactorModel&>(*made->model).factors().items.to(torch::kFloat64);
  };
  const auto plain = vectors(kTiny);
  auto wanted = plain.clone();
  for (const auto& feature : damage.data.features) {
    const auto x = unit_rows(feature.all().to(torch::kFloat64));
    const auto nearest = std::get<1>(x.mm(x.t()).topk(5, 1));
    const double weight = feature.name == "image" ? .1 : .9;
    for (int64_t j = 0; j < 5; ++j) {
      wanted += weight / 5 * plain.index_select(0, nearest.select(1, j));
    }
  }
  EXPECT_LT(
      (vectors(with(kTiny, {{"item_graph", true, "test"}})) - wanted).abs().max().item<double>(),
      1e-5);
}

TEST(R2mrVariants, PaperReleasedAndEverySwitchTrain) {
  const Damage damage("swap", 1);
  for (const Settings& settings :
       std::vector<Settings>{{{"variant", "paper", "test"}},
                             {{"variant", "released", "test"}},
                             {{"k", 4, "test"}, {"decouple", "split", "test"}},
                             {{"k", 2, "test"}, {"item_graph", true, "test"}},
                             {{"reviewer", "bpr", "test"}},
                             {{"reviewer", "bpr", "test"}, {"review_mode", "training", "test"}},
                             {{"reviewer", "random", "test"}},
                             {{"reviewer_init", "uniform", "test"}},
                             {{"score_scale", "none", "test"}},
                             {{"half", true, "test"}},
                             {{"eta", "0.5", "test"}},
                             {{"gate", "better", "test"}},
                             {{"gate", "random", "test"}},
                             {{"gate", "none", "test"}},
                             {{"missing", "ignore", "test"}},
                             {{"feature_scale", "std", "test"}},
                             {{"squash", "none", "test"}},
                             {{"floor", 0.0, "test"}},
                             {{"item_id", "table", "test"}},
                             {{"train_features", "until_first_rewrite", "test"}},
                             {{"rewriter", "mean", "test"}},
                             {{"rewriter", "neighbours", "test"}},
                             {{"rewriter", "ridge", "test"}},
                             {{"hold_out", false, "test"}},
                             {{"adv", 0.0, "test"}},
                             {{"ln_gain", 1.0, "test"}}}) {
    Trained trained(find_model("R2MR"), damage.data,
                    with(with(kTiny, settings), {{"epochs", 3, "test"},
                                                 {"rewrite_every", 1, "test"},
                                                 {"first_epochs", 10, "test"},
                                                 {"later_epochs", 5, "test"}}));
    const std::string what = settings.back().name + " = " + settings.back().value.dump();
    EXPECT_TRUE(trained.scores().isfinite().all().item<bool>()) << what;
    EXPECT_EQ(report_of(*trained.model)["rounds"].size(), 3u) << what;
  }
}

TEST(R2mrVariants, TheFullPresetTrains) {
  const Damage damage("swap", 1);
  Trained trained(find_model("R2MR"), damage.data,
                  {{"preset", "full", "test"},
                   {"eta", "0.5", "test"},
                   {"epochs", 2, "test"},
                   {"rewrite_every", 1, "test"},
                   {"first_epochs", 1, "test"}});
  EXPECT_TRUE(trained.scores().isfinite().all().item<bool>());
  State state;
  trained.model->state(state);
  EXPECT_EQ(state.save().weights.at("image.rows").size(1), 384);
}

// What a switch is for, where its effect can be seen in a round.
TEST(R2mrVariants, SwitchesDoWhatTheySay) {
  const Damage damage("swap", 1);
  const auto fitted = [&](const Settings& more) {
    auto made = make_r2mr(damage.data, with(with(kTiny, {{"first_epochs", 20, "test"}}), more));
    made->supplier().fit(Watch{});
    return made;
  };
  auto plain = fitted({}), better = fitted({{"gate", "better", "test"}});
  const Json round = better->report()["rounds"].back();
  EXPECT_GE(round["accepted"]["image"].get<int64_t>(),
            plain->report()["rounds"].back()["accepted"]["image"].get<int64_t>());
  const auto weights = better->weights();
  const auto changed = weights.at("round_of") > 0;
  EXPECT_TRUE((weights.at("score_after") > weights.at("score_before"))
                  .masked_select(changed)
                  .all()
                  .item<bool>());
  EXPECT_FALSE(torch::equal(fitted({{"adv", 0.0, "test"}})->weights().at("image.rows"),
                            plain->weights().at("image.rows")));
  // hold_out = false: every chosen item is learned, nothing stops the rewriter early.
  EXPECT_TRUE(fitted({{"hold_out", false, "test"}})
                  ->report()["rounds"]
                  .back()["rewriter"]["held_out"]
                  .is_null());
  EXPECT_FALSE(plain->report()["rounds"].back()["rewriter"]["held_out"].is_null());
}

}  // namespace
}  // namespace tessera
