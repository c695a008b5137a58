// A settings file, and its values put into every kind of field.
#include <cstdint>
#include <string>
#include <vector>

#include "cli/config.h"
#include "tessera/base/error.h"
#include "tessera/base/fields.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tessera;
  try {
    const std::string text(reinterpret_cast<const char*>(data), size);
    Settings settings = cli::parse_config(text, "file.yaml");
    for (auto& setting : settings) {
      if (setting.value.is_string()) setting.value = parse_value(setting.value.get<std::string>());
    }
    int64_t n_layers = 2;
    double learning_rate = 1e-3;
    bool freeze = false;
    std::string variant = "paper", note;
    std::vector<std::string> modalities;
    std::vector<int64_t> topk;
    std::vector<double> ratios;
    Fields fields("Fuzz");
    fields.choice("variant", variant, "which", {"paper", "released"});
    fields.preset("variant", "released", {{"n_layers", 1}});
    fields.add("n_layers", n_layers, "steps", between(0, 8));
    fields.add("learning_rate", learning_rate, "rate", above(0));
    fields.add("freeze", freeze, "whether");
    fields.add("note", note, "text");
    fields.list("modalities", modalities, "names");
    fields.list("topk", topk, "cuts", at_least(1));
    fields.list("ratios", ratios, "parts", between(0, 1));
    fields.alias("depth", {"n_layers"});
    fields.apply(settings);
    fields.resolved();
    refuse_unknown(settings, {&fields}, "Fuzz");
  } catch (const InputError&) {
  }
  return 0;
}
