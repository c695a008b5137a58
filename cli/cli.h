#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/base/error.h"
#include "tessera/base/fields.h"
#include "tessera/base/json.h"
#include "tessera/base/log.h"
#include "tessera/base/text.h"
#include "tessera/model/model.h"

namespace tessera::cli {

/// The flags that all verbs share. Flags that are settings (--seed, --topk, any --name=value) end
/// up in `flags`, in the order typed.
struct Common {
  std::vector<std::string> datasets;
  std::string model;
  std::vector<std::string> configs, sets;
  std::string output, log_file;
  bool json = false, quiet = false, verbose = false, no_progress = false;
  Settings flags;
  Settings typed;       ///< --name value of names that are no flags of the verb
  std::string command;  ///< the whole command line, for command.txt

  /// The one dataset folder; exit 2 when -d is missing or repeated.
  const std::string& dataset() const;
  /// A flag given as a setting, or `otherwise`.
  std::string flag(const std::string& name, const std::string& otherwise = "") const;
};

/// A verb: `name`, one line of help, its body. Common flags are added; `run` is called after
/// parsing. With `settings` any further --name value is a setting, otherwise it is refused with
/// the nearest flag of the verb.
CLI::App* add_verb(CLI::App& app, Common& common, const std::string& name, const std::string& help,
                   bool settings, std::function<void()> run);

/// Config files, --set and flags as one list in rising precedence.
Settings gather_settings(const Common& common);

/// Log lines "<RFC 3339 time> <LEVEL> <message>" to stderr and to --log-file.
Log make_log(const Common& common);

/// The result: stdout gets nothing else. A closed pipe ends quietly.
void print(const std::string& text);
void print_json(const Json& value);

/// Before work whose result goes to -o: exit 2 where nothing can be written there, a warning of
/// what others left.
void check_output(const Common& common, const Log& log);

/// Where a result was written, unless that is stdout itself.
void print_place(const std::string& path);

/// A result of any length, as it is made: to the file -o, whose path is then printed, or else to
/// stdout.
using Sink = std::function<void(std::string_view)>;
void print_or_write(const Common& common, const std::function<void(const Sink&)>& make);

/// What recommend and similar take of the common flags: --device and --threads, which is set here.
/// Exit 2 for those that mean nothing to a bundle.
TrainSettings check_bundle_flags(const Common& common, const std::string& verb);

/// The length of a list: what was asked, else 10, or the whole of a smaller catalogue.
int64_t list_length(std::optional<int64_t> asked, int64_t n_items);

/// One id a line; what stands after a tab is somebody else's column. Exit 3 where there is none,
/// unless there `may_be_none`.
std::vector<std::string> read_ids(const std::string& path, bool may_be_none = false);

/// A bar on stderr, only where a person looks at it.
std::function<Progress(std::string, int64_t)> progress_bar(const Common& common);

/// True after SIGINT or SIGTERM.
bool interrupted();

void add_inspect(CLI::App& app, Common& common);
void add_import(CLI::App& app, Common& common);
void add_train(CLI::App& app, Common& common);
void add_evaluate(CLI::App& app, Common& common);
void add_compare(CLI::App& app, Common& common);
void add_tune(CLI::App& app, Common& common);
void add_recommend(CLI::App& app, Common& common);
void add_similar(CLI::App& app, Common& common);
void add_models(CLI::App& app, Common& common);
void add_doctor(CLI::App& app, Common& common);
void add_demo(CLI::App& app, Common& common);
void add_features(CLI::App& app, Common& common);
void add_report(CLI::App& app, Common& common);

}  // namespace tessera::cli
