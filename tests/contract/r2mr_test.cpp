// What R2MR must do beyond the contract of every model: specs r2mr sections 11 (one seed of swap)
// and 13.
#include <sys/resource.h>

#include "tessera/base/error.h"
#include "tessera/model/bundle.h"
#include "tessera/model/report_files.h"
#include "tessera/nn/review.h"
#include "tessera/ops/edge_scores.h"
#include "tessera/ops/fill.h"
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
}

TEST(R2mrPlanted, FindsNoConsensusInPermutedRows) {
  Dataset data = planted_pairs({});
  corrupt(data, "image", "swap", 1.0);  // every row, one further
  auto made = make_r2mr(data, kTiny);
  made->supplier().fit(Watch{});
  const Json image = made->reporter().report()["modalities"][0];
  EXPECT_LE(image["mean"].get<double>(), .52);
  EXPECT_FALSE(image["consensus"].get<bool>());
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
  const auto before = whole.scores(0, rows[0]), after = less.scores(0, rows[0]);
  const auto same = alone.logical_and(whole.n_counted() > 0).nonzero().flatten();
  ASSERT_GT(same.numel(), 3);
  EXPECT_TRUE(torch::equal(before.index_select(0, same), after.index_select(0, same)));
  EXPECT_FALSE(torch::equal(before, after));
}

TEST(R2mrReview, EdgesOnly) {
  const int64_t n = 20'000;
  const Random random(7, "edges");
  std::vector<int64_t> offsets = {0};
  std::vector<int32_t> items;
  for (int64_t u = 0; u < n; ++u) {
    std::set<int32_t> row;
    uint32_t draw = 0;
    while (row.size() < 10) {
      row.insert(static_cast<int32_t>(
          random.below(static_cast<uint32_t>(n), 0, static_cast<uint64_t>(u), draw)));
    }
    items.insert(items.end(), row.begin(), row.end());
    offsets.push_back(static_cast<int64_t>(items.size()));
  }
  const BipartiteGraph graph(torch::tensor(offsets, torch::kInt64),
                             torch::tensor(items, torch::kInt32), n);
  const auto y = normal(n, 32, 0, 1, Random(8)).requires_grad_();
  const auto p = normal(n, 32, 0, 1, Random(9)).requires_grad_();
  const auto peak_mb = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss / 1024;
  };
  const int64_t before = peak_mb();
  edge_sums(graph, y, p, 1, std::sqrt(32.0)).sum().backward();
  EXPECT_LT(peak_mb() - before, 200);  // a dense [U, I] in half precision takes 800
}

TEST(R2mrRounds, ThreeModalitiesFillWhatIsMissing) {
  const Dataset data = planted_pairs({.n_modalities = 3, .missing = .2});
  auto made = make_r2mr(data, kTiny);
  made->supplier().fit(Watch{});
  const Json report = made->reporter().report();
  int64_t filled = 0;
  for (const auto& modality : report["modalities"]) filled += modality["filled"].get<int64_t>();
  EXPECT_GT(filled, 0);
  const auto exported = made->supplier().export_features({});
  ASSERT_EQ(exported.size(), 3u);
  int64_t rows = 0;
  for (const auto& part : exported) rows += part.items.numel();
  EXPECT_EQ(rows, 3 * 400 + filled);
  // missing = ignore: never a target.
  auto ignoring = make_r2mr(data, with(kTiny, {{"missing", "ignore", "test"}}));
  ignoring->supplier().fit(Watch{});
  for (const auto& modality : ignoring->reporter().report()["modalities"]) {
    EXPECT_EQ(modality["filled"], 0);
  }
}

TEST(R2mrRounds, OneModalityIsReportedOnly) {
  const Dataset data = planted_pairs({.n_modalities = 1, .n_cold = 20});
  auto made = make_r2mr(data, kTiny);
  made->supplier().fit(Watch{});
  const Json report = made->reporter().report();
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
    EXPECT_EQ(plain[m].card["train_sha256"], train_sha256(damage.data));
  }
  // Back to the model's space with the original tables, bit for bit.
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
  const Json report = made->reporter().report();
  const auto files = dynamic_cast<ReportFiles&>(*made->model).report_files();
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

// What was rewritten, from what, with which scores, and the rows before it, come out of a bundle.
TEST(R2mrBundle, KeepsTheRecordsOfWhatWasRewritten) {
  const Damage damage("swap", 1);
  Trained trained(find_model("R2MR"), damage.data,
                  with(kTiny, {{"epochs", 2, "test"}, {"rewrite_every", 1, "test"}}));
  const fs::path folder = scratch("r2mr_bundle");
  save_bundle(folder, *trained.model, find_model("R2MR"), trained.settings, Json::object());
  const Bundle bundle = load_bundle(folder);
  Json before = dynamic_cast<Reporter&>(*trained.model).report();
  Json after = dynamic_cast<Reporter&>(*bundle.model).report();
  EXPECT_GT(before["rewritten"]["n"], 0);
  EXPECT_EQ(before["rewritten"], after["rewritten"]);
  EXPECT_EQ(before["worst"], after["worst"]);
  EXPECT_EQ(dynamic_cast<ReportFiles&>(*trained.model).report_files()["quality.tsv"],
            dynamic_cast<ReportFiles&>(*bundle.model).report_files()["quality.tsv"]);
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

// A run that is killed, or asked to stop, in the middle of a rewriting round.
TEST(R2mrResume, InsideARoundEndsBitEqual) {
  const Damage damage("swap", 3);
  const ModelInfo& info = find_model("R2MR");
  const Settings settings = with(
      kTiny, {{"epochs", 4, "test"}, {"rewrite_every", 1, "test"}, {"rewrite_max", 2, "test"}});
  struct Killed {};
  const auto run = [&](const fs::path& folder, bool resume, int64_t kill_at, int64_t stop_at) {
    fs::create_directories(folder);
    const RunSettings resolved = resolve_settings(info, settings);
    auto model =
        info.make(settings, Context{damage.data, Random(999), resolved.train_settings, {}});
    TrainConfig config = training(settings, info, folder);
    config.resume = resume;
    auto seen = std::make_shared<int64_t>(0);
    config.progress = [=](const std::string& name, int64_t) {
      Progress progress;
      if (name == "rewriter, round 1") {
        progress.advance = [=](int64_t n) {
          *seen += n;
          if (*seen == kill_at) throw Killed{};
        };
      }
      return progress;
    };
    config.stop_requested = [=] { return stop_at > 0 && *seen >= stop_at; };
    train_model(*model, damage.data, config);
    State state;
    model->state(state);
    return state.save();
  };
  const fs::path whole = scratch("r2mr_whole");
  const State::Saved unbroken = run(whole, false, 0, 0);
  ASSERT_GT((unbroken.weights.at("round_of") > 0).sum().item<int64_t>(), 0);
  for (const bool kill : {true, false}) {
    const fs::path broken = scratch("r2mr_broken");
    if (kill) {
      EXPECT_THROW(run(broken, false, 60, 0), Killed);
    } else {
      EXPECT_THROW(run(broken, false, 0, 57), RunError);
    }
    const State::Saved resumed = run(broken, true, 0, 0);
    for (const auto& [name, tensor] : unbroken.weights) {
      EXPECT_TRUE(torch::equal(tensor, resumed.weights.at(name))) << name;
    }
    for (const auto& [name, tensor] : unbroken.optimizer) {
      EXPECT_TRUE(torch::equal(tensor, resumed.optimizer.at(name))) << name;
    }
    EXPECT_EQ(unbroken.values, resumed.values);
    EXPECT_EQ(without_times(whole / "metrics.jsonl"), without_times(broken / "metrics.jsonl"));
    fs::remove_all(broken);
  }
  fs::remove_all(whole);
}

TEST(R2mrVariants, PaperReleasedAndEverySwitchTrain) {
  const Damage damage("swap", 1);
  for (const Settings& settings :
       std::vector<Settings>{{{"variant", "paper", "test"}},
                             {{"variant", "released", "test"}},
                             {{"k", 4, "test"}, {"decouple", "split", "test"}},
                             {{"k", 2, "test"}, {"item_graph", true, "test"}},
                             {{"reviewer", "random", "test"}},
                             {{"gate", "random", "test"}},
                             {{"gate", "none", "test"}},
                             {{"rewriter", "mean", "test"}},
                             {{"rewriter", "neighbours", "test"}},
                             {{"rewriter", "ridge", "test"}},
                             {{"item_id", "table", "test"}, {"squash", "none", "test"}}}) {
    Trained trained(find_model("R2MR"), damage.data,
                    with(with(kTiny, settings), {{"epochs", 3, "test"},
                                                 {"rewrite_every", 1, "test"},
                                                 {"first_epochs", 10, "test"},
                                                 {"later_epochs", 5, "test"}}));
    EXPECT_TRUE(trained.scores().isfinite().all().item<bool>()) << settings[0].name;
  }
}

}  // namespace
}  // namespace tessera
