#include "tessera/base/fields.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>

#include "tessera/base/error.h"

namespace tessera {
namespace {

std::string shown(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_float()) return fmt::format("{:g}", value.get<double>());
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

/// A number in JSON, or text that is one as a whole (YAML scalars and flags arrive as text).
bool as_double(const Json& value, double& out) {
  if (value.is_number()) {
    out = value.get<double>();
    return true;
  }
  if (!value.is_string()) return false;
  const auto& text = value.get_ref<const std::string&>();
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, out);
  return error == std::errc{} && rest == end && !text.empty();
}

bool as_int(const Json& value, int64_t& out) {
  double number = 0;
  if (!as_double(value, number) || number != std::floor(number) || std::fabs(number) > 9e15) {
    return false;
  }
  out = static_cast<int64_t>(number);
  return true;
}

bool as_bool(const Json& value, bool& out) {
  if (value.is_boolean()) {
    out = value.get<bool>();
    return true;
  }
  if (!value.is_string()) return false;
  const auto text = squeezed(value.get<std::string>());
  if (text != "true" && text != "false" && text != "yes" && text != "no" && text != "on" &&
      text != "off") {
    return false;
  }
  out = text == "true" || text == "yes" || text == "on";
  return true;
}

/// A list, one bare scalar, or text with commas or plus signs between the elements.
std::vector<Json> as_list(const Json& value) {
  if (value.is_array()) return {value.begin(), value.end()};
  if (!value.is_string()) return {value};
  std::vector<Json> out;
  std::string part;
  const auto text = value.get<std::string>() + ",";
  for (const char c : text) {
    if (c == ',' || c == '+') {
      if (!part.empty()) out.emplace_back(part);
      part.clear();
    } else if (!std::isspace(static_cast<unsigned char>(c))) {
      part += c;
    }
  }
  return out;
}

InputError wrong_type(const std::string& where, const Json& like, const Json& found) {
  return usage_error("{}: expected a value like {}, got {}", where,
                     like.is_array() && like.empty() ? "[a, b]" : shown(like),
                     printable(shown(found)));
}

void require(const Check& check, const std::string& where, double value, const Json& found) {
  if (check.holds && !check.holds(value)) {
    throw usage_error("{} must be {}, got {}", where, check.words, printable(shown(found)));
  }
}

/// Takes a list of numbers into `value`, each read by `read` and checked.
template <typename T>
std::function<void(const Json&)> set_numbers(const std::string& where, std::vector<T>& value,
                                             const Check& check, bool (*read)(const Json&, T&)) {
  return [&value, where, like = Json(value), check, read](const Json& given) {
    std::vector<T> out;
    for (const auto& element : as_list(given)) {
      T number{};
      if (!read(element, number)) throw wrong_type(where, like, given);
      require(check, where, static_cast<double>(number), element);
      out.push_back(number);
    }
    value = std::move(out);
  };
}

/// Names that users of MMRec and RecBole bring, and what the same thing is called here.
const std::vector<std::pair<std::string, std::string>>& foreign_names() {
  static const std::vector<std::pair<std::string, std::string>> names = {
      {"training_neg_sample_num", "n_negatives"},
      {"train_neg_sample_args", "n_negatives"},
      {"neg_sampling", "n_negatives"},
      {"num_neg", "n_negatives"},
      {"n_mm_layers", "n_layers"},
      {"n_ui_layers", "n_layers"},
      {"num_layers", "n_layers"},
      {"embedding_dim", "embedding_size"},
      {"latent_dim", "embedding_size"},
      {"hidden_size", "embedding_size"},
      {"feat_embed_dim", "embedding_size"},
      {"batch_size", "train_batch_size"},
      {"lr", "learning_rate"},
      {"max_epoch", "epochs"},
      {"num_epochs", "epochs"},
      {"early_stop", "stopping_step"},
      {"patience", "stopping_step"},
      {"gpu_id", "device"},
      {"use_gpu", "device"},
      {"eval_args", "protocol"},
      {"eval_type", "protocol"},
      {"max_item_list_length", "max_length"},
      {"knn_k", "k"},
      {"reg_weights", "reg_weight"},
      {"l2_reg", "reg_weight"},
      {"data_path", "--dataset"},
      {"checkpoint_dir", "--output"},
      {"hyper_parameters", "search"},
  };
  return names;
}

/// Names of theirs for what is no setting here, and why.
const std::vector<std::pair<std::string, std::string>>& foreign_habits() {
  static const std::vector<std::pair<std::string, std::string>> habits = {
      {"learner", "the optimiser is Adam"},
      {"valid_metric_bigger", "every metric that selects is better when higher"},
      {"use_neg_sampling", "a model draws negatives where its loss has them"},
      {"req_training", "every model is trained as it needs"},
      {"end2end", "every model is trained as it needs"},
      {"is_multimodal_model", "--modalities chooses the features"},
      {"reproducibility", "the same seed always gives the same run"},
      {"save_recommended_topk", "a run writes recs_top50.tsv"},
      {"filter_out_cold_start_users", "the protocol says who is averaged"},
      {"filter_out_cod_start_users", "the protocol says who is averaged"},
      {"inter_splitting_label", "'tessera import --split given' reads labels"},
      {"inter_file_name", "files are named to 'tessera import'"},
      {"benchmark_filename", "'tessera import' takes the split files"},
  };
  return habits;
}

}  // namespace

Check at_least(double low) {
  return {fmt::format("at least {:g}", low), [low](double x) { return x >= low; }};
}

Check above(double low) {
  return {fmt::format("above {:g}", low), [low](double x) { return x > low; }};
}

Check between(double low, double high) {
  return {fmt::format("between {:g} and {:g}", low, high),
          [low, high](double x) { return x >= low && x <= high; }};
}

std::string setting_name(std::string_view typed) {
  std::string out;
  for (const unsigned char c : typed) {
    out += c == '-' ? '_' : static_cast<char>(std::tolower(c));
  }
  return out;
}

Json parse_value(const std::string& text) {
  if (!text.empty() && (text.front() == '[' || text.front() == '{')) {
    try {
      return Json::parse(text);
    } catch (const nlohmann::json::exception&) {
      if (text.front() == '[' && text.back() == ']') return text.substr(1, text.size() - 2);
      return text;
    }
  }
  return text;
}

Fields::Entry& Fields::put(const std::string& name, const std::string& type,
                           const std::string& help, std::function<Json()> get,
                           std::function<void(const Json&)> set) {
  Entry entry;
  entry.name = name;
  entry.type = type;
  entry.help = help;
  entry.initial = get();
  entry.get = std::move(get);
  entry.set = std::move(set);
  entries_.push_back(std::move(entry));
  return entries_.back();
}

template <typename T>
void Fields::add_integer(const std::string& name, T& value, const std::string& help,
                         const Check& check) {
  const std::string where = owner_ + "." + name;
  const Json like = static_cast<int64_t>(value);
  put(
      name, "integer", help, [&value] { return Json(static_cast<int64_t>(value)); },
      [&value, where, like, check](const Json& given) {
        int64_t number = 0;
        if (!as_int(given, number)) throw wrong_type(where, like, given);
        require(check, where, static_cast<double>(number), given);
        value = number;
      })
      .check_words = check.words;
}

void Fields::add(const std::string& name, int64_t& value, const std::string& help, Check check) {
  add_integer(name, value, help, check);
}

void Fields::add(const std::string& name, Chosen<int64_t>& value, const std::string& help,
                 Check check) {
  add_integer(name, value, help, check);
}

void Fields::add(const std::string& name, double& value, const std::string& help, Check check) {
  const std::string where = owner_ + "." + name;
  const Json like = value;
  put(
      name, "number", help, [&value] { return Json(value); },
      [&value, where, like, check](const Json& given) {
        double number = 0;
        if (!as_double(given, number) || !std::isfinite(number)) {
          throw wrong_type(where, like, given);
        }
        require(check, where, number, given);
        value = number;
      })
      .check_words = check.words;
}

void Fields::add(const std::string& name, bool& value, const std::string& help) {
  const std::string where = owner_ + "." + name;
  const Json like = value;
  put(
      name, "true/false", help, [&value] { return Json(value); },
      [&value, where, like](const Json& given) {
        if (!as_bool(given, value)) throw wrong_type(where, like, given);
      });
}

void Fields::add(const std::string& name, std::string& value, const std::string& help) {
  const std::string where = owner_ + "." + name;
  const Json like = value;
  put(
      name, "text", help, [&value] { return Json(value); },
      [&value, where, like](const Json& given) {
        if (given.is_object() || given.is_array()) throw wrong_type(where, like, given);
        value = shown(given);
      });
}

void Fields::choice(const std::string& name, std::string& value, const std::string& help,
                    std::vector<std::string> options) {
  const std::string where = owner_ + "." + name;
  auto& entry = put(
      name, "choice", help, [&value] { return Json(value); },
      [&value, where, options](const Json& given) {
        const std::string typed = shown(given);
        for (const auto& option : options) {
          if (squeezed(option) == squeezed(typed)) {
            value = option;
            return;
          }
        }
        throw usage_error("{} must be one of {}, got {}{}", where, fmt::join(options, " | "),
                          printable(typed), did_you_mean(typed, options));
      });
  entry.check_words = fmt::format("one of {}", fmt::join(options, " | "));
  entry.options = std::move(options);
}

void Fields::list(const std::string& name, std::vector<std::string>& value,
                  const std::string& help) {
  const std::string where = owner_ + "." + name;
  put(
      name, "list", help, [&value] { return Json(value); },
      [&value, where](const Json& given) {
        std::vector<std::string> out;
        for (const auto& element : as_list(given)) {
          if (element.is_object() || element.is_array()) {
            throw wrong_type(where, Json::array(), given);
          }
          out.push_back(shown(element));
        }
        value = std::move(out);
      });
}

void Fields::list(const std::string& name, std::vector<int64_t>& value, const std::string& help,
                  Check check) {
  put(
      name, "list", help, [&value] { return Json(value); },
      set_numbers(owner_ + "." + name, value, check, as_int))
      .check_words = check.words;
}

void Fields::list(const std::string& name, std::vector<double>& value, const std::string& help,
                  Check check) {
  put(
      name, "list", help, [&value] { return Json(value); },
      set_numbers(owner_ + "." + name, value, check, as_double))
      .check_words = check.words;
}

void Fields::alias(const std::string& name, std::vector<std::string> targets) {
  aliases_.push_back({name, std::move(targets)});
}

void Fields::preset(const std::string& name, const std::string& value,
                    std::vector<std::pair<std::string, Json>> values) {
  presets_.push_back({name, value, std::move(values)});
}

void Fields::global_default(const std::string& name, Json value) {
  globals_.emplace_back(name, std::move(value));
}

Fields::Entry* Fields::find(const std::string& name) {
  for (auto& entry : entries_) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

const Fields::Entry* Fields::find(const std::string& name) const {
  return const_cast<Fields*>(this)->find(name);
}

std::vector<std::string> Fields::targets_of(const std::string& name) const {
  const std::string wanted = setting_name(name);
  if (find(wanted) != nullptr) return {wanted};
  for (const auto& alias : aliases_) {
    if (alias.name == wanted) return alias.targets;
  }
  return {};
}

bool Fields::knows(const std::string& name) const { return !targets_of(name).empty(); }

void Fields::apply(const Settings& settings) {
  std::vector<std::string> explicitly;
  for (const auto& setting : settings) {
    for (const auto& target : targets_of(setting.name)) explicitly.push_back(target);
  }
  auto set_all = [&](bool only_preset_names) {
    for (const auto& setting : settings) {
      for (const auto& target : targets_of(setting.name)) {
        const bool has_preset = std::any_of(presets_.begin(), presets_.end(),
                                            [&](const Preset& p) { return p.name == target; });
        if (has_preset != only_preset_names) continue;
        Entry* entry = find(target);
        entry->set(setting.value);
        entry->origin = setting.origin;
      }
    }
  };
  set_all(true);
  // A preset may also hang on a setting of another owner (the training's protocol), as it was
  // given.
  const auto chosen = [&](const Preset& preset) {
    if (const Entry* entry = find(preset.name)) return entry->get() == Json(preset.value);
    bool same = false;
    for (const auto& setting : settings) {
      if (setting_name(setting.name) == preset.name) {
        same = squeezed(shown(setting.value)) == squeezed(preset.value);
      }
    }
    return same;
  };
  for (const auto& preset : presets_) {
    if (!chosen(preset)) continue;
    for (const auto& [name, value] : preset.values) {
      const auto targets = targets_of(name);
      if (targets.empty()) asked_.emplace_back(name, value);  // of another owner
      for (const auto& target : targets) {
        if (std::find(explicitly.begin(), explicitly.end(), target) != explicitly.end()) continue;
        find(target)->set(value);
        find(target)->origin = preset.name + "=" + preset.value;
      }
    }
  }
  set_all(false);
}

std::vector<std::string> Fields::names() const {
  std::vector<std::string> out;
  for (const auto& entry : entries_) out.push_back(entry.name);
  for (const auto& alias : aliases_) out.push_back(alias.name);
  return out;
}

std::vector<Resolved> Fields::resolved() const {
  std::vector<Resolved> out;
  for (const auto& entry : entries_) out.push_back({entry.name, entry.get(), entry.origin});
  return out;
}

std::vector<Fields::Row> Fields::rows() const {
  std::vector<Row> out;
  for (const auto& entry : entries_) {
    out.push_back({entry.name, entry.type, shown(entry.initial), entry.check_words, entry.help});
  }
  return out;
}

std::string Fields::help() const {
  std::string out;
  for (const auto& row : rows()) {
    out += fmt::format("  {} = {}  {}{}\n", row.name, row.value, row.help,
                       row.check.empty() ? "" : "; must be " + row.check);
  }
  return out;
}

void refuse_unknown(const Settings& settings, const std::vector<const Fields*>& fields,
                    const std::string& owner) {
  std::vector<std::string> all;
  for (const auto* f : fields) {
    const auto names = f->names();
    all.insert(all.end(), names.begin(), names.end());
  }
  for (const auto& setting : settings) {
    const bool known = std::any_of(fields.begin(), fields.end(),
                                   [&](const Fields* f) { return f->knows(setting.name); });
    if (known) continue;
    const std::string name = setting_name(setting.name);
    for (const auto& [theirs, ours] : foreign_names()) {
      if (name == theirs) {
        throw usage_error("unknown setting '{}': here it is '{}'", name, ours);
      }
    }
    for (const auto& [theirs, why] : foreign_habits()) {
      if (name == theirs) throw usage_error("no setting '{}': {}; leave it out", name, why);
    }
    throw usage_error("{} has no setting '{}'{}", owner, printable(name), did_you_mean(name, all));
  }
}

}  // namespace tessera
