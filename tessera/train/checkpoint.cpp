#include "tessera/train/checkpoint.h"

#include "tessera/base/error.h"
#include "tessera/base/files.h"

namespace tessera {
namespace {

constexpr const char* kWeights = "weights.safetensors";
constexpr const char* kOptimizer = "optimizer.safetensors";

}  // namespace

void write_checkpoint(const fs::path& folder, const State::Saved& saved,
                      const std::function<void(const fs::path&)>& also) {
  write_folder(folder, [&](const fs::path& to) {
    write_safetensors(to / kWeights, saved.weights);
    if (!saved.optimizer.empty()) write_safetensors(to / kOptimizer, saved.optimizer);
    if (also) also(to);
    Json state;
    state["format"] = 1;
    state["sha256"] = Json::object();
    for (const auto& entry : fs::directory_iterator(to)) {
      state["sha256"][entry.path().filename().string()] = sha256_of_file(entry.path());
    }
    state["values"] = saved.values;
    write_json(to / "state.json", state);
  });
}

State::Saved read_checkpoint(const fs::path& folder) {
  if (!folder_exists(folder)) throw data_error("no checkpoint {}", folder.string());
  const Json state = read_json(folder / "state.json");
  if (!state.is_object() || !state.contains("format") || state["format"] != 1 ||
      !state.contains("values") || !state["values"].is_object()) {
    throw data_error("{}: not a checkpoint of this version (wanted format 1)",
                     (folder / "state.json").string());
  }
  if (state.contains("sha256") && state["sha256"].is_object()) {
    for (const auto& [file, hash] : state["sha256"].items()) {
      if (!fs::path(file).has_parent_path() && hash != sha256_of_file(folder / file)) {
        throw data_error(
            "{}: its sha256 is not the one in state.json: the file was changed or damaged",
            (folder / file).string());
      }
    }
  }
  State::Saved saved;
  saved.values = state["values"];
  saved.weights = read_safetensors(folder / kWeights);
  if (fs::exists(folder / kOptimizer)) saved.optimizer = read_safetensors(folder / kOptimizer);
  return saved;
}

}  // namespace tessera
