#include "cli/config.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <sstream>

#include "tessera/base/error.h"
#include "tessera/base/files.h"

namespace tessera::cli {
namespace {

/// Turns YAML events into settings as they come, so that nothing is expanded or kept twice.
class Handler : public YAML::EventHandler {
 public:
  explicit Handler(std::string name) : name_(std::move(name)) {}
  Settings settings;

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    value(mark, anchor, "", Json());
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    refuse(mark, "an alias (*name)");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& text) override {
    if (text.find('\n') != std::string::npos) refuse(mark, "text of several lines");
    value(mark, anchor, tag, Json(text));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    check(mark, tag, anchor);
    if (levels_.empty()) refuse(mark, "a list at the top");
    if (in_list_) refuse(mark, "a list in a list");
    in_list_ = true;
    list_ = Json::array();
    list_line_ = mark.line;
  }
  void OnSequenceEnd() override {
    in_list_ = false;
    emit(list_line_, list_);
  }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    check(mark, tag, anchor);
    if (in_list_) refuse(mark, "a map in a list");
    if (levels_.size() > 20) refuse(mark, "maps nested more than 20 deep");
    levels_.emplace_back();
  }
  void OnMapEnd() override {
    levels_.pop_back();
    if (!levels_.empty()) levels_.back().clear();
  }

 private:
  [[noreturn]] void refuse(const YAML::Mark& mark, const std::string& what) const {
    throw data_error("{}:{}:{}: {}; a settings file holds maps, lists and plain values only", name_,
                     mark.line + 1, mark.column + 1, what);
  }
  void check(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) const {
    if (anchor != 0) refuse(mark, "an anchor (&name)");
    if (!tag.empty() && tag != "?" && tag != "!") refuse(mark, "a tag (" + printable(tag) + ")");
  }
  void value(const YAML::Mark& mark, YAML::anchor_t anchor, const std::string& tag, Json value) {
    check(mark, tag, anchor);
    if (in_list_) {
      list_.push_back(std::move(value));
    } else if (levels_.empty()) {
      if (!value.is_null()) refuse(mark, "a bare value");
    } else if (levels_.back().empty()) {
      if (!value.is_string() || value.get_ref<const std::string&>().empty()) {
        refuse(mark, "an empty key");
      }
      levels_.back() = value.get<std::string>();
    } else {
      emit(mark.line, std::move(value));
    }
  }
  void emit(int line, Json value) {
    std::string name;
    for (const auto& level : levels_) name += (name.empty() ? "" : ".") + level;
    if (!levels_.empty()) levels_.back().clear();
    if (value.is_null()) return;
    settings.push_back({name, std::move(value), name_ + ":" + std::to_string(line + 1)});
  }

  std::string name_;
  std::vector<std::string> levels_;  // the key being read at each depth
  bool in_list_ = false;
  Json list_;
  int list_line_ = 0;
};

}  // namespace

Settings parse_config(const std::string& text, const std::string& name) {
  // config.resolved.json holds {"settings": {name: {"value", "origin"}}}; take the values back.
  if (text.find("\"origin\"") != std::string::npos) {
    const Json json = parse_json(text, name);
    Settings out;
    for (const char* key : {"model", "dataset"}) {
      if (json.is_object() && json.contains(key)) out.push_back({key, json[key], name});
    }
    if (json.is_object() && json.contains("settings") && json["settings"].is_object()) {
      for (const auto& [key, entry] : json["settings"].items()) {
        if (!entry.is_object() || !entry.contains("value")) continue;
        if (entry.contains("origin") && entry["origin"] == "default") continue;
        if (!entry["value"].is_null()) out.push_back({key, entry["value"], name});
      }
      return out;
    }
  }
  Handler handler(name);
  try {
    std::istringstream in(text);
    YAML::Parser parser(in);
    parser.HandleNextDocument(handler);
  } catch (const YAML::Exception& e) {
    throw data_error("{}:{}:{}: not valid YAML or JSON: {}", name, e.mark.line + 1,
                     e.mark.column + 1, printable(e.msg, 80));
  }
  return handler.settings;
}

Settings read_config(const std::string& path) {
  return parse_config(read_file(path), fs::path(path).filename().string());
}

}  // namespace tessera::cli
