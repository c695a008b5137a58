#include <memory>

#include "cli/cli.h"
#include "tessera/base/files.h"
#include "tessera/serve/recommender.h"

namespace tessera::cli {
namespace {

struct Flags {
  std::string bundle, users, users_file, history, exclude;
  int64_t n = 10;
  bool no_filter_seen = false;
};

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> out;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(separator, begin), text.size());
    if (end > begin) out.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return out;
}

/// One id a line; what stands after a tab is somebody else's column.
std::vector<std::string> read_ids(const std::string& path) {
  std::vector<std::string> out;
  for (std::string& line : split(read_file(path), '\n')) {
    if (line.back() == '\r') line.pop_back();
    line.resize(std::min(line.find('\t'), line.size()));
    if (!line.empty()) out.push_back(std::move(line));
  }
  if (out.empty()) throw data_error("{} holds no ids, wanted one a line", path);
  return out;
}

std::string as_tsv(const Recommender& recommender, const std::vector<Answer>& answers) {
  const bool titles = recommender.bundle().data->item_columns.find("title") != nullptr;
  std::string out = titles ? "user\titem\trank\tscore\ttitle\n" : "user\titem\trank\tscore\n";
  for (const auto& answer : answers) {
    const std::string_view user = answer.user.empty() ? "-" : std::string_view(answer.user);
    for (size_t r = 0; r < answer.items.size(); ++r) {
      const auto& [item, score] = answer.items[r];
      out += fmt::format("{}\t{}\t{}\t{}", user, recommender.item_id(item), r + 1,
                         static_cast<float>(score));
      if (titles) out += "\t" + recommender.title(item);
      out += '\n';
    }
  }
  return out;
}

Json as_json(const Recommender& recommender, const std::vector<Answer>& answers) {
  Json out = {{"model", recommender.bundle().about["model"]}, {"answers", Json::array()}};
  for (const auto& answer : answers) {
    Json list = {{"user", answer.user.empty() ? Json(nullptr) : Json(answer.user)},
                 {"via", answer.via},
                 {"items", Json::array()}};
    for (size_t r = 0; r < answer.items.size(); ++r) {
      const auto& [item, score] = answer.items[r];
      Json row = {{"id", recommender.item_id(item)}, {"score", score}, {"rank", r + 1}};
      if (const auto title = recommender.title(item); !title.empty()) row["title"] = title;
      list["items"].push_back(std::move(row));
    }
    out["answers"].push_back(std::move(list));
  }
  return out;
}

void recommend(const Common& common, const Flags& flags) {
  if (!common.flag("topk").empty()) throw usage_error("recommend has no --topk: here it is -n");
  const Log log = make_log(common);
  Ask ask;
  ask.users = split(flags.users, ',');
  if (!flags.users_file.empty()) {
    const auto more = read_ids(flags.users_file);
    ask.users.insert(ask.users.end(), more.begin(), more.end());
  }
  ask.history = split(flags.history, ',');
  if (ask.users.empty() && ask.history.empty()) {
    throw usage_error(
        "nobody to recommend to: give --users a,b or --users-file FILE or --history item,item");
  }
  if (!flags.exclude.empty()) ask.exclude = read_ids(flags.exclude);
  ask.n = flags.n;
  ask.filter_seen = !flags.no_filter_seen;
  Recommender recommender(load_bundle(flags.bundle, log), log);
  const auto answers = recommender.recommend(ask);
  for (const char* via : {"history", "item mean", "popular"}) {
    const auto n = std::count_if(answers.begin(), answers.end(),
                                 [&](const Answer& answer) { return answer.via == via; });
    if (n > 0) log.info("{} of {} lists via {}", n, answers.size(), via);
  }
  const std::string text =
      common.json
          ? as_json(recommender, answers).dump(2, ' ', false, Json::error_handler_t::replace) + "\n"
          : as_tsv(recommender, answers);
  if (common.output.empty()) {
    print(text);
  } else {
    write_file(common.output, text);
    print(common.output);
  }
}

}  // namespace

void add_recommend(CLI::App& app, Common& common) {
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(app, common, "recommend", "top N for users or a history", false,
                            [&common, flags] { recommend(common, *flags); });
  verb->add_option("bundle", flags->bundle, "bundle folder, or a run that has one")->required();
  verb->add_option("--users", flags->users, "user ids, a,b");
  verb->add_option("--users-file", flags->users_file, "file of user ids, one a line");
  verb->add_option("--history", flags->history, "item ids, oldest first, a,b");
  verb->add_option("-n", flags->n, "length of a list, 10");
  verb->add_option("--exclude", flags->exclude, "file of item ids that are not wanted");
  verb->add_flag("--no-filter-seen", flags->no_filter_seen, "keep what the user has seen");
}

}  // namespace tessera::cli
