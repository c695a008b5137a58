#include <map>
#include <memory>
#include <optional>

#include "cli/cli.h"
#include "tessera/ops/device.h"
#include "tessera/serve/recommender.h"

namespace tessera::cli {
namespace {

struct Flags {
  std::string bundle, users, users_file, history, exclude, only;
  std::optional<int64_t> n;
  bool no_filter_seen = false;
};

void add_tsv(const Catalogue& catalogue, bool titles, const Answer& answer, std::string& out) {
  const std::string_view user = answer.user.empty() ? "-" : std::string_view(answer.user);
  for (size_t r = 0; r < answer.items.size(); ++r) {
    const auto& [item, score] = answer.items[r];
    fmt::format_to(std::back_inserter(out), "{}\t{}\t{}\t{}", user, catalogue.id(item), r + 1,
                   static_cast<float>(score));
    if (titles) {
      out += '\t';
      out += catalogue.title(item);
    }
    out += '\n';
  }
}

Json as_json(const Catalogue& catalogue, const Answer& answer) {
  Json list = {{"user", answer.user.empty() ? Json(nullptr) : Json(answer.user)},
               {"via", via_word(answer.via)},
               {"items", Json::array()}};
  for (size_t r = 0; r < answer.items.size(); ++r) {
    const auto& [item, score] = answer.items[r];
    Json row = {{"id", catalogue.id(item)}, {"score", score}, {"rank", r + 1}};
    if (const auto title = catalogue.title(item); !title.empty()) row["title"] = title;
    list["items"].push_back(std::move(row));
  }
  return list;
}

void recommend(const Common& common, const Flags& flags) {
  const ReferenceOps plain(check_bundle_flags(common, "recommend").reference());
  const Log log = make_log(common);
  Ask ask;
  ask.all_users = flags.users == "all";
  if (!ask.all_users) ask.users = split_list(flags.users);
  if (!flags.users_file.empty()) {
    if (ask.all_users) throw usage_error("--users all and --users-file: choose one");
    const auto more = read_ids(flags.users_file);
    ask.users.insert(ask.users.end(), more.begin(), more.end());
  }
  ask.history = split_list(flags.history);
  if (ask.users.empty() && ask.history.empty() && !ask.all_users) {
    throw usage_error(
        "nobody to recommend to: give --users a,b or --users all or --users-file FILE or "
        "--history item,item");
  }
  if (!flags.exclude.empty()) ask.exclude = read_ids(flags.exclude, true);
  if (!flags.only.empty()) ask.only = read_ids(flags.only);
  ask.filter_seen = !flags.no_filter_seen;
  check_output(common, log);
  const Recommender recommender(load_bundle(flags.bundle, log, {.answers = true}), log);
  ask.n = list_length(flags.n, recommender.version()->catalogue->size());
  const auto version = recommender.version();
  const Catalogue& catalogue = *version->catalogue;
  const bool titles = catalogue.has_titles();
  std::map<std::string, int64_t> via;
  int64_t n_lists = 0, n_short = 0;
  const auto n_users = ask.all_users ? version->data->n_users
                                     : std::max<int64_t>(1, static_cast<int64_t>(ask.users.size()));
  const Progress progress = progress_bar(common)("lists", n_users);
  print_or_write(common, [&](const Sink& sink) {
    std::string text;
    if (common.json) {
      text = fmt::format("{{\n  \"model\": {},\n  \"answers\": [", Json(version->model).dump());
    } else {
      text = titles ? "user\titem\trank\tscore\ttitle\n" : "user\titem\trank\tscore\n";
    }
    recommender.recommend(ask, [&](Answer&& answer) {
      ++via[via_word(answer.via)];
      n_short += static_cast<int64_t>(answer.items.size()) < ask.n ? 1 : 0;
      if (common.json) {
        text += n_lists == 0 ? "\n    " : ",\n    ";
        text += as_json(catalogue, answer).dump(-1, ' ', false, Json::error_handler_t::replace);
      } else {
        add_tsv(catalogue, titles, answer, text);
      }
      ++n_lists;
      progress.advance(1);
      sink(text);
      text.clear();
    });
    if (common.json) text += "\n  ]\n}\n";
    sink(text);
  });
  for (const char* kind : {"history", "item mean", "popular"}) {
    if (via[kind] > 0) log.info("{} of {} lists via {}", via[kind], n_lists, kind);
  }
  if (n_short > 0) {
    log.info("{} of {} lists are shorter than {}: no more candidates", n_short, n_lists, ask.n);
  }
}

}  // namespace

void add_recommend(CLI::App& app, Common& common) {
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(app, common, "recommend", "top N for users or a history", false,
                            [&common, flags] { recommend(common, *flags); });
  verb->add_option("bundle", flags->bundle, "bundle folder, or a run that has one")->required();
  verb->add_option("--users", flags->users, "user ids, a,b; all: every user, one after the other");
  verb->add_option("--users-file", flags->users_file, "file of user ids, one a line");
  verb->add_option("--history", flags->history, "item ids, oldest first, a,b");
  verb->add_option("-n", flags->n, "length of a list, 10");
  verb->add_option("--exclude", flags->exclude, "file of item ids that are not wanted");
  verb->add_option("--only", flags->only, "file of item ids: no others are answered (in stock)");
  verb->add_flag("--no-filter-seen", flags->no_filter_seen, "keep what the user has seen");
}

}  // namespace tessera::cli
