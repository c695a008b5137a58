#include "tessera/base/error.h"
#include "tessera/folder/manifest.h"
#include "tests/fuzz/memory_file.h"

// A features.json, its entries opened in a folder without the files: only InputError may escape.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using namespace tessera;
  const std::string_view text = as_text(bytes, size);
  try {
    const Json manifest = parse_manifest(text, "features.json");
    for (const auto& [name, entry] : manifest.items()) {
      made_by_model(entry);
      try {
        open_feature("/proc/self/no-such-folder", name, entry, {}, true);
      } catch (const InputError&) {
      }
    }
  } catch (const InputError&) {
  }
  try {
    parse_feature_argument(std::string(text.substr(0, 200)));
  } catch (const InputError&) {
  }
  return 0;
}
