#include "cli/cli.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <mutex>
#include <regex>
#include <set>

#include "cli/config.h"
#include "tessera/base/field_error.h"
#include "tessera/base/files.h"
#include "tessera/base/resumable.h"
#include "tessera/base/stop.h"
#include "tessera/base/version.h"
#include "tessera/ops/process.h"
#include "tessera/study/run.h"

namespace tessera::cli {
namespace {

std::atomic<bool> g_interrupted{false};
int g_print_error = 0;  // errno of the first write to stdout that failed

/// "--name" and "-j", not "-1" and "-".
bool is_flag(const std::string& token) {
  return token.size() > 1 && token[0] == '-' &&
         (token[1] == '-' || std::isalpha(static_cast<unsigned char>(token[1])) != 0);
}

/// Takes "--name=value", "--name value" and "--name" (true) out of `tokens` where no flag of the
/// verb has that name: those are settings, and CLI11 would read their values as arguments.
Settings take_settings(std::vector<std::string>& tokens, const std::vector<std::string>& flags) {
  Settings out;
  std::vector<std::string> rest;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const std::string& token = tokens[i];
    const size_t equals = token.find('=');
    const std::string typed = token.substr(0, equals);
    if (token == "--") {
      rest.insert(rest.end(), tokens.begin() + static_cast<std::ptrdiff_t>(i), tokens.end());
      break;
    }
    if (token.rfind("--", 0) != 0 || std::find(flags.begin(), flags.end(), typed) != flags.end()) {
      rest.push_back(token);
      continue;
    }
    std::string value = "true";
    if (equals != std::string::npos) {
      value = token.substr(equals + 1);
    } else if (i + 1 < tokens.size() && !is_flag(tokens[i + 1])) {
      value = tokens[++i];
    }
    out.push_back({setting_name(typed.substr(2)), parse_value(value), "flag"});
  }
  tokens = std::move(rest);
  return out;
}

std::vector<std::string> flags_of(const CLI::App& verb) {
  std::vector<std::string> out;
  for (const auto* option : verb.get_options()) {
    for (const auto& name : option->get_lnames()) out.push_back("--" + name);
  }
  return out;
}

}  // namespace

const std::string& Common::dataset() const {
  if (datasets.empty()) {
    throw usage_error("no dataset given: add -d FOLDER (made by 'tessera import')");
  }
  if (datasets.size() > 1) throw usage_error("one dataset wanted, {} given", datasets.size());
  return datasets[0];
}

std::string Common::flag(const std::string& name, const std::string& otherwise) const {
  for (auto it = flags.rbegin(); it != flags.rend(); ++it) {
    if (it->name == name) {
      return it->value.is_string() ? it->value.get<std::string>() : it->value.dump();
    }
  }
  return otherwise;
}

CLI::App* add_verb(CLI::App& app, Common& common, const std::string& name, const std::string& help,
                   bool settings, std::function<void()> run) {
  CLI::App* verb = app.add_subcommand(name, help);
  verb->add_option("-d,--dataset", common.datasets, "dataset folder made by 'tessera import'");
  verb->add_option("-m,--model", common.model, "model, see 'tessera models'");
  verb->add_option("-c,--config", common.configs, "settings file, YAML or JSON (repeatable)");
  verb->add_option("--set", common.sets, "one setting, a.b=c (repeatable)");
  verb->add_option("-o,--output", common.output, "where the result goes");
  verb->add_option("--log-file", common.log_file, "log lines also go here");
  verb->add_flag("--json", common.json, "one JSON document on stdout");
  verb->add_flag("-q,--quiet", common.quiet, "warnings and errors only");
  verb->add_flag("-v,--verbose", common.verbose, "more log lines");
  verb->add_flag("--no-progress", common.no_progress, "no progress bar");
  // Flags that are settings of the same name.
  struct Short {
    const char* flag;
    const char* setting;
    const char* help;
  };
  for (const Short& s : {Short{"-s,--seed", "seed", "seed of the run"},
                         Short{"-j,--threads", "threads", "threads, 0: all cores"},
                         Short{"--device", "device", "cpu or reference"},
                         Short{"--topk", "topk", "cutoffs, 5,10,20"},
                         Short{"--metrics", "metrics", "metrics, recall,ndcg@20"},
                         Short{"--valid-metric", "valid_metric", "metric that selects"},
                         Short{"--protocol", "protocol", "strict, mmrec, recbole-seq, .."},
                         Short{"--modalities", "modalities", "modalities a model sees, a,b"},
                         Short{"--permute", "permute", "modality shuffled among its items"},
                         Short{"--time-limit", "time_limit", "minutes"}}) {
    const std::string setting = s.setting;
    verb->add_option_function<std::vector<std::string>>(
            s.flag,
            [&common, setting](const std::vector<std::string>& values) {
              common.flags.push_back({setting, parse_value(values.back()), "flag"});
            },
            s.help)
        ->allow_extra_args(false);
  }
  verb->allow_extras();
  verb->callback([&common, verb, name, settings, run = std::move(run)] {
    const auto flags = flags_of(*verb);
    for (const auto& token : verb->remaining()) {
      throw usage_error("{}: unexpected '{}'{}; see 'tessera {} --help'", name, printable(token),
                        did_you_mean(token, flags), name);
    }
    if (!settings && !common.typed.empty()) {
      const std::string typed = "--" + common.typed[0].name;
      throw usage_error("{} has no flag '{}'{}; see 'tessera {} --help'", name, printable(typed),
                        did_you_mean(typed, flags), name);
    }
    common.flags.insert(common.flags.end(), common.typed.begin(), common.typed.end());
    run();
  });
  return verb;
}

Settings gather_settings(const Common& common) {
  Settings out;
  for (const auto& path : common.configs) {
    const Settings file = read_config(path);
    out.insert(out.end(), file.begin(), file.end());
  }
  for (const auto& text : common.sets) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0) {
      throw usage_error("--set wants name=value, got '{}'", printable(text));
    }
    out.push_back(
        {setting_name(text.substr(0, equals)), parse_value(text.substr(equals + 1)), "--set"});
  }
  out.insert(out.end(), common.flags.begin(), common.flags.end());
  return out;
}

namespace {

/// The flags of all verbs, as they are typed.
std::set<std::string> g_flags;

/// Library words for an option, `min_rating`, as the flag that is typed for it.
std::string options_as_flags(const std::string& text) {
  static const std::regex option("`([a-z][a-z0-9_]*)`");
  std::string out;
  auto from = text.cbegin();
  for (std::sregex_iterator at(text.begin(), text.end(), option), end; at != end; ++at) {
    std::string dashed = ((*at)[1].length() == 1 ? "-" : "--") + (*at)[1].str();
    std::replace(dashed.begin(), dashed.end(), '_', '-');
    out.append(from, (*at)[0].first);
    // A setting is typed as it is spelled.
    out += dashed.size() == 2 || g_flags.contains(dashed) ? dashed : "--" + (*at)[1].str();
    from = (*at)[0].second;
  }
  return out.append(from, text.cend());
}

}  // namespace

Log make_log(const Common& common) {
  auto file = std::make_shared<std::ofstream>();
  if (!common.log_file.empty()) {
    file->open(common.log_file, std::ios::app);
    if (!*file) throw usage_error("cannot write the log file {}", common.log_file);
  }
  const Level lowest = common.verbose ? Level::debug : common.quiet ? Level::warn : Level::info;
  auto mutex = std::make_shared<std::mutex>();
  return Log([file, lowest, mutex](Level level, const std::string& message) {
    static constexpr const char* kNames[] = {"DEBUG", "INFO", "WARN", "ERROR"};
    const std::string line = fmt::format(
        "{} {} {}\n", now_rfc3339(), kNames[static_cast<int>(level)], options_as_flags(message));
    const std::lock_guard lock(*mutex);
    if (level >= lowest) std::fputs(line.c_str(), stderr);
    if (file->is_open()) *file << line << std::flush;
  });
}

void print(const std::string& text) {
  const auto size = text.size();
  if (std::fwrite(text.data(), 1, size, stdout) != size && g_print_error == 0) {
    g_print_error = errno;
  }
  if (text.empty() || text.back() != '\n') std::fputc('\n', stdout);
}

void print_json(const Json& value) {
  print(value.dump(2, ' ', false, Json::error_handler_t::replace));
}

namespace {

/// The reader of stdout went away: nothing is left to do.
struct PipeClosed {};

}  // namespace

void check_output(const Common& common, const Log& log) {
  if (common.output.empty()) return;
  check_writable(common.output);
  warn_of_leftovers(common.output, log);
}

void print_place(const std::string& path) {
  struct stat out = {}, named = {};
  const bool is_stdout = fstat(STDOUT_FILENO, &out) == 0 && stat(path.c_str(), &named) == 0 &&
                         out.st_dev == named.st_dev && out.st_ino == named.st_ino;
  if (!is_stdout) print(path);
}

void print_or_write(const Common& common, const std::function<void(const Sink&)>& make) {
  const auto stop = [] { end_if_stopped(interrupted, "interrupted"); };
  if (common.output.empty()) {
    make([&](std::string_view text) {
      stop();
      if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size()) return;
      if (errno == EINTR) stop();  // a reader that does not read
      if (errno == EPIPE) throw PipeClosed{};
      throw RunError(Exit::failed, fmt::format("cannot write the result: {}", strerror(errno)));
    });
    return;
  }
  write_file_with(
      common.output,
      [&](std::ostream& out) {
        make([&](std::string_view text) {
          stop();
          out.write(text.data(), static_cast<std::streamsize>(text.size()));
        });
      },
      interrupted);
  print_place(common.output);
}

TrainSettings check_bundle_flags(const Common& common, const std::string& verb) {
  if (!common.datasets.empty() || !common.model.empty() || !common.configs.empty() ||
      !common.sets.empty()) {
    throw usage_error("{} answers from a bundle: it takes no -d, -m, -c or --set", verb);
  }
  TrainSettings settings;
  for (const Setting& flag : common.flags) {
    if (flag.name != "threads" && flag.name != "device") {
      throw usage_error("{} has no flag '--{}'{}; see 'tessera {} --help'", verb, flag.name,
                        flag.name == "topk" ? ": here it is -n" : "", verb);
    }
  }
  Fields fields(verb);
  settings.describe(fields);
  fields.apply(common.flags);
  settings.on();
  use_threads(settings.threads);
  return settings;
}

int64_t list_length(std::optional<int64_t> asked, int64_t n_items) {
  return asked.value_or(std::min<int64_t>(10, n_items));
}

std::vector<std::string> read_ids(const std::string& path, bool may_be_none) {
  std::vector<std::string> out;
  for (std::string& line : split_list(read_file(path), '\n')) {
    if (line.back() == '\r') line.pop_back();
    line.resize(std::min(line.find('\t'), line.size()));
    if (!line.empty()) out.push_back(std::move(line));
  }
  if (out.empty() && !may_be_none) throw data_error("{} holds no ids, wanted one a line", path);
  return out;
}

std::function<Progress(std::string, int64_t)> progress_bar(const Common& common) {
  if (common.no_progress || common.quiet || isatty(2) == 0) {
    return [](const std::string&, int64_t) { return Progress{}; };
  }
  return [](const std::string& what, int64_t total) {
    auto done = std::make_shared<int64_t>(0);
    return Progress{[what, total, done](int64_t n) {
      *done += n;
      const auto percent = total > 0 ? 100 * *done / total : 100;
      std::fprintf(stderr, "\r%s %3ld %%", what.c_str(), static_cast<long>(percent));
      if (*done >= total) std::fputs("\r\033[K", stderr);
    }};
  };
}

bool interrupted() { return g_interrupted.load(); }

namespace {

void on_signal(int) { g_interrupted.store(true); }

/// Verbs of other systems, and what the same thing is called here.
std::string hint_for(const std::string& verb, const std::vector<std::string>& verbs) {
  static const std::vector<std::pair<std::string, std::string>> theirs = {
      {"extract", "features"},  {"eval", "evaluate"},    {"test", "evaluate"},
      {"predict", "recommend"}, {"validate", "inspect"}, {"benchmark", "compare"},
      {"fit", "train"},         {"convert", "import"}};
  for (const auto& [name, ours] : theirs) {
    if (name == verb && std::find(verbs.begin(), verbs.end(), ours) != verbs.end()) {
      return fmt::format("; here it is '{}'", ours);
    }
  }
  return did_you_mean(verb, verbs);
}

/// CLI11 has no notion of "dash and underscore are the same": flags are given to it with dashes.
std::vector<std::string> with_dashes(int argc, char** argv) {
  std::vector<std::string> out;
  for (int i = 1; i < argc; ++i) {
    std::string token = argv[i];
    if (token.rfind("--", 0) == 0) {
      const size_t end = std::min(token.find('='), token.size());
      std::replace(token.begin(), token.begin() + static_cast<std::ptrdiff_t>(end), '_', '-');
    }
    out.push_back(std::move(token));
  }
  return out;
}

/// An argument as a shell takes it back.
std::string quoted(const std::string& argument) {
  const bool plain = !argument.empty() && std::all_of(argument.begin(), argument.end(), [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 ||
           std::string_view("_@%+=:,./-").find(c) != std::string_view::npos;
  });
  if (plain) return argument;
  std::string out = "'";
  for (const char c : argument) {
    if (c == '\'') {
      out += "'\\''";
    } else {
      out += c;
    }
  }
  return out + "'";
}

/// What CLI11 says of a command line, in the words of the house.
std::string reworded(std::string text) {
  static const std::vector<std::pair<std::regex, std::string>> words = {
      {std::regex(R"(^Could not convert: (\S+) = (.*)$)"), "$1: wanted a number, got '$2'"},
      {std::regex(R"(^(\S+): \d+ required \S+ missing$)"), "$1: wanted a value after it"},
      {std::regex(R"(^(\S+) is required$)"), "$1 is missing"}};
  std::replace(text.begin(), text.end(), '\n', ' ');
  for (const auto& [pattern, ours] : words) text = std::regex_replace(text, pattern, ours);
  if (!text.empty()) text[0] = static_cast<char>(std::tolower(static_cast<unsigned char>(text[0])));
  return text;
}

/// What the library says in the names of settings, with the flags that are typed for them here.
std::string with_flags(std::string text) {
  static const std::vector<std::pair<std::regex, std::string>> words = {
      {std::regex("choose another folder"), "choose another -o"},
      {std::regex("^no model given: name one that is registered$"),
       "no model given: add -m NAME, see 'tessera models'"},
      {std::regex("^no dataset given: name a folder that import made$"),
       "no dataset given: add -d FOLDER (made by 'tessera import')"},
      {std::regex("^(no model '.*)$"), "$1; see 'tessera models'"},
      {std::regex("(is a run of .*), got model (.*: leave it out)$"), "$1, got -m $2"},
      {std::regex(R"(choose epochs \(all of them run,)"), "give --epochs N (all N run,"}};
  for (const auto& [pattern, ours] : words) text = std::regex_replace(text, pattern, ours);
  return options_as_flags(text);
}

int run_program(int argc, char** argv) {
  CLI::App app("Tessera: recommendations from pictures, words, sounds and clicks.", "tessera");
  app.set_version_flag("--version", std::string("tessera ") + kVersion);
  app.option_defaults()->always_capture_default(false);
  app.require_subcommand(0, 1);
  Common common;
  common.command = "tessera";
  for (int i = 1; i < argc; ++i) common.command += " " + quoted(argv[i]);
  add_inspect(app, common);
  add_import(app, common);
  add_features(app, common);
  add_report(app, common);
  add_train(app, common);
  add_evaluate(app, common);
  add_compare(app, common);
  add_tune(app, common);
  add_recommend(app, common);
  add_similar(app, common);
  add_models(app, common);
  add_doctor(app, common);
  add_demo(app, common);
  std::vector<std::string> verbs;
  for (const auto* verb : app.get_subcommands({})) {
    verbs.push_back(verb->get_name());
    for (const auto* option : verb->get_options()) {
      for (const auto& name : option->get_lnames()) g_flags.insert("--" + name);
    }
  }
  auto args = with_dashes(argc, argv);
  if (args.empty()) {
    print(app.help());
    return static_cast<int>(Exit::usage);
  }
  if (args[0].rfind('-', 0) != 0 && std::find(verbs.begin(), verbs.end(), args[0]) == verbs.end()) {
    throw usage_error("no verb '{}'{}; see 'tessera --help'", printable(args[0]),
                      hint_for(args[0], verbs));
  }
  if (args[0].rfind('-', 0) != 0) {
    common.typed = take_settings(args, flags_of(*app.get_subcommand(args[0])));
  }
  const std::string help = args[0][0] == '-' ? "tessera" : "tessera " + args[0];
  std::reverse(args.begin(), args.end());
  try {
    app.parse(std::move(args));
  } catch (const CLI::Success& e) {  // --help, --version
    return app.exit(e);
  } catch (const CLI::ParseError& e) {
    throw usage_error("{}; see '{} --help'", reworded(e.what()), help);
  }
  return static_cast<int>(Exit::done);
}

/// "--test-metric 'x' is ..": a field of a request as the flag that it was typed by.
std::string with_flag(const FieldError& e) {
  const std::string flag =
      e.field() == "dataset" ? "-d DATASET" : options_as_flags("`" + e.field() + "`");
  return flag + (e.what()[0] == '\'' ? " " : ": ") + e.what();
}

}  // namespace

int main_program(int argc, char** argv) {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  own_process();
  auto fail = [](Exit code, const std::string& message) {
    std::fprintf(stderr, "error: %s\n", message.c_str());
    return static_cast<int>(code);
  };
  int code = 0;
  try {
    code = run_program(argc, argv);
  } catch (const FieldError& e) {
    code = fail(e.code(), with_flag(e));
  } catch (const InputError& e) {
    code = fail(e.code(), with_flags(e.what()));
  } catch (const ResumableError& e) {
    // Other verbs that train leave a run.
    const std::string verb = argv[1];
    code = fail(e.code(),
                fmt::format("{}; go on with: tessera {} --resume {}", e.what(),
                            verb == "compare" || verb == "tune" ? verb : "train", e.folder()));
  } catch (const RunError& e) {
    code = fail(e.code(), e.what());
  } catch (const PipeClosed&) {
  } catch (const std::bad_alloc&) {
    code = fail(Exit::failed, "out of memory");
  } catch (const std::exception& e) {
    const std::string text = e.what();
    code = fail(Exit::failed, "unexpected: " + text.substr(0, text.find('\n')));
  }
  // A reader that went away (head) is no failure, a full disk is.
  const bool stopped = code == static_cast<int>(Exit::interrupted_without_checkpoint);
  if (!stopped && std::fflush(stdout) != 0 && g_print_error == 0) g_print_error = errno;
  if (g_print_error != 0 && g_print_error != EPIPE && code == 0) {
    code = fail(Exit::failed,
                fmt::format("cannot write the result: {}", std::strerror(g_print_error)));
  }
  return code;
}

}  // namespace tessera::cli
