#include <cstddef>
#include <cstdint>
#include <string>

#include "tessera/base/error.h"
#include "tessera/base/files.h"
#include "tessera/serve/recommender.h"
#include "tests/planted_bundle.h"
#include "tests/unit/temp_folder.h"

namespace {

const char* const kFiles[] = {"model.json",      "user_map.tsv",        "item_map.tsv",
                              "items.tsv",       "train_indptr.npy",    "train_items.npy",
                              "seen_indptr.npy", "weights.safetensors", "user_emb.npy"};

/// The bundle as saved, written once, and the one file that the last input replaced.
struct Place {
  tessera::TempFolder folder;
  tessera::fs::path root = folder / "model";
  tessera::Json about;
  std::string changed, original;
  Place() {
    tessera::planted::save("PlantedFactors", root);
    about = tessera::read_json(root / "model.json");
  }
};

void put(const tessera::fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

}  // namespace

/// The first byte chooses the file that the rest replaces. Hashes are made right, so that what
/// stands behind them is reached: in model.json the hash "good" stands for the right one.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Place place;
  if (size == 0) return 0;
  const std::string name = kFiles[static_cast<uint8_t>(data[0] - '0') % std::size(kFiles)];
  std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (!place.changed.empty()) put(place.root / place.changed, place.original);
  place.changed = name;
  place.original = tessera::read_file(place.root / name);
  if (name == "model.json") {
    const auto parsed = tessera::Json::parse(bytes, nullptr, false);
    if (parsed.is_object() && parsed.contains("files") && parsed["files"].is_object()) {
      tessera::Json mended = parsed;
      for (auto& [file, hash] : mended["files"].items()) {
        if (hash == "good" && place.about["files"].contains(file)) {
          hash = place.about["files"][file];
        }
      }
      bytes = mended.dump(-1, ' ', false, tessera::Json::error_handler_t::replace);
    }
    put(place.root / name, bytes);
  } else {
    put(place.root / name, bytes);
    tessera::Json about = place.about;
    about["files"][name] = tessera::sha256(bytes);
    put(place.root / "model.json", about.dump());
  }
  const tessera::BundleUse quick{.answers = true, .compare_by = {"image"}};
  for (const auto& use : {tessera::BundleUse(), quick}) {
    try {
      const tessera::Recommender recommender(tessera::load_bundle(place.root, {}, use));
      tessera::Ask ask;
      ask.history = {"apple"};
      ask.n = 1;
      recommender.recommend(ask);
      recommender.similar("apple", 1, "image");
    } catch (const tessera::InputError&) {
    } catch (const tessera::RunError&) {
      // A weight may be NaN, which ranking must refuse.
    }
  }
  if (name != "model.json") put(place.root / "model.json", place.about.dump());
  return 0;
}
