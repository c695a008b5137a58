#pragma once

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tessera/base/json.h"

namespace tessera {

/// What a number must satisfy, with the words that help and errors use ("at least 1").
struct Check {
  std::string words;
  std::function<bool(double)> holds;
};
Check at_least(double low);
Check above(double low);
Check between(double low, double high);

/// One value that a user gave, and where: "flag", "baby.yaml:7", "variant=paper".
struct Setting {
  std::string name;
  Json value;
  std::string origin;
};
using Settings = std::vector<Setting>;  ///< in rising precedence: a later one wins

/// A configuration as Fields sees it when resolved: value and origin of every setting, in order.
struct Resolved {
  std::string name;
  Json value;
  std::string origin;
};

/// A setting that knows whether somebody chose its value: a user, a preset, a model's own default
/// or an assignment. Otherwise it is the default.
template <typename T>
class Chosen {
 public:
  Chosen(T initial) : value_(initial) {}
  Chosen& operator=(T value) {
    value_ = value;
    chosen_ = true;
    return *this;
  }
  operator T() const { return value_; }
  bool chosen() const { return chosen_; }

 private:
  T value_;
  bool chosen_ = false;
};

/// The settings of one owner (a model, the training): names, defaults, checks, help, and the values
/// that a user gave. It holds references into a config struct, so it is built, used and dropped in
/// one function. Parsing, range checks, help, the resolved configuration, Python's keyword
/// arguments and docs/models.md all come from it.
class Fields {
 public:
  explicit Fields(std::string owner) : owner_(std::move(owner)) {}

  void add(const std::string& name, int64_t& value, const std::string& help, Check check = {});
  void add(const std::string& name, Chosen<int64_t>& value, const std::string& help,
           Check check = {});
  void add(const std::string& name, double& value, const std::string& help, Check check = {});
  void add(const std::string& name, bool& value, const std::string& help);
  void add(const std::string& name, std::string& value, const std::string& help);
  /// One of `options`, compared without case and punctuation.
  void choice(const std::string& name, std::string& value, const std::string& help,
              std::vector<std::string> options);
  void list(const std::string& name, std::vector<std::string>& value, const std::string& help);
  void list(const std::string& name, std::vector<int64_t>& value, const std::string& help,
            Check check = {});
  void list(const std::string& name, std::vector<double>& value, const std::string& help,
            Check check = {});
  /// `name` is another spelling that sets all of `targets`.
  void alias(const std::string& name, std::vector<std::string> targets);
  /// Choosing `value` for the setting `name` also sets these; explicit values win over them.
  void preset(const std::string& name, const std::string& value,
              std::vector<std::pair<std::string, Json>> values);
  /// This owner's own default of a setting that belongs to another owner (the training).
  void global_default(const std::string& name, Json value);

  /// Applies the settings whose names belong here: presets first, then the rest in order. Settings
  /// with other names are left alone. Exit 2 for a value of the wrong type or out of range.
  void apply(const Settings& settings);

  bool knows(const std::string& name) const;
  std::vector<std::string> names() const;
  std::vector<Resolved> resolved() const;
  const std::vector<std::pair<std::string, Json>>& global_defaults() const { return globals_; }
  /// What the presets that apply() found chosen ask of other owners.
  const std::vector<std::pair<std::string, Json>>& global_presets() const { return asked_; }
  const std::string& owner() const { return owner_; }
  /// Lines "  name = default  help; must be at least 1", one a setting.
  std::string help() const;
  /// One row a setting for docs: name, type, default, check, help.
  struct Row {
    std::string name, type, value, check, help;
  };
  std::vector<Row> rows() const;

 private:
  struct Entry {
    std::string name, type, help, check_words;
    Json initial;
    std::string origin = "default";
    std::function<void(const Json&)> set;
    std::function<Json()> get;
    std::vector<std::string> options;
  };
  struct Alias {
    std::string name;
    std::vector<std::string> targets;
  };
  struct Preset {
    std::string name, value;
    std::vector<std::pair<std::string, Json>> values;
  };
  template <typename T>
  void add_integer(const std::string& name, T& value, const std::string& help, const Check& check);
  Entry& put(const std::string& name, const std::string& type, const std::string& help,
             std::function<Json()> get, std::function<void(const Json&)> set);
  Entry* find(const std::string& name);
  const Entry* find(const std::string& name) const;
  std::vector<std::string> targets_of(const std::string& name) const;

  std::string owner_;
  std::vector<Entry> entries_;
  std::vector<Alias> aliases_;
  std::vector<Preset> presets_;
  std::vector<std::pair<std::string, Json>> globals_, asked_;
};

/// The form in which setting names are compared: lower case, '-' as '_'.
std::string setting_name(std::string_view typed);

/// Exit 2 unless every setting is known to one of `fields`; the message names the nearest right
/// name, or the name used here for one of MMRec's or RecBole's. `owner` is whom the message blames.
void refuse_unknown(const Settings& settings, const std::vector<const Fields*>& fields,
                    const std::string& owner);

/// `text` of a command line as JSON: number, true/false, [list] or comma-free string.
Json parse_value(const std::string& text);

}  // namespace tessera
