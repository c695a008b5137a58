#include <cstddef>
#include <cstdint>
#include <fstream>
#include <map>
#include <string>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/model/registry.h"
#include "tessera/train/train.h"
#include "tests/planted.h"
#include "tests/unit/temp_folder.h"

namespace {

const char* const kFiles[] = {"state.json", "weights.safetensors", "optimizer.safetensors"};

void put(const tessera::fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

/// A run of BM3, whose state has tables, tensors, moments and counters, stopped after an epoch.
struct Place {
  tessera::Dataset data;
  tessera::TempFolder folder;
  tessera::fs::path last = folder / "checkpoints/last";
  std::map<std::string, std::string> files;  ///< of checkpoints/last
  tessera::Json state;

  Place() {
    tessera::PlantedOptions options;
    options.n_users = 12;
    options.n_items = 10;
    options.n_modalities = 1;
    options.mean_rows = 6;
    data = tessera::planted_pairs(options);
    train(1, false);
    for (const auto& entry : tessera::fs::directory_iterator(last)) {
      files[entry.path().filename().string()] = tessera::read_file(entry.path());
    }
    state = tessera::Json::parse(files["state.json"]);
  }

  void train(int64_t epochs, bool resume) const {
    const auto& info = tessera::find_model("BM3");
    const tessera::Settings given = {{"epochs", epochs, "test"}, {"embedding_size", 2, "test"}};
    tessera::TrainConfig config;
    config.settings = tessera::resolve_settings(info, given).train_settings;
    config.protocol = tessera::find_protocol(config.settings.protocol);
    config.folder = folder.path();
    config.resume = resume;
    const auto model =
        info.make(given, tessera::Context{data.view(), tessera::Random(999), config.settings, {}});
    tessera::train_model(*model, data, config);
  }
};

}  // namespace

/// The first byte chooses the file of the checkpoint that the rest replaces; then the run goes on
/// for an epoch. The hashes are made right, so that what stands behind them is reached.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Place place;
  if (size == 0) return 0;
  const std::string name = kFiles[data[0] % std::size(kFiles)];
  std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  tessera::Json state = place.state;
  if (name == "state.json") {
    const auto parsed = tessera::Json::parse(bytes, nullptr, false);
    if (parsed.is_object() && parsed.contains("sha256")) {
      state = parsed;
      state["sha256"] = place.state["sha256"];
      bytes = state.dump(-1, ' ', false, tessera::Json::error_handler_t::replace);
    }
  } else {
    state["sha256"][name] = tessera::sha256(bytes);
  }
  for (const auto& [file, original] : place.files) put(place.last / file, original);
  put(place.last / "state.json", state.dump());
  put(place.last / name, bytes);
  try {
    place.train(2, true);
  } catch (const tessera::InputError&) {
  } catch (const tessera::RunError&) {
    // A weight may be NaN, which training must refuse.
  }
  tessera::fs::remove_all(place.folder / "checkpoints/best");
  return 0;
}
