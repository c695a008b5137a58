#include "tessera/base/error.h"
#include "tessera/data/npy.h"
#include "tessera/folder/manifest.h"
#include "tests/fuzz/memory_file.h"
#include "tests/unit/temp_folder.h"

// Features as text, imported; the same bytes as the ids of three rows: only InputError may escape.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using namespace tessera;
  const MemoryFile file(as_text(bytes, size));
  static const MemoryFile array(npy_head(torch::kHalf, {3, 2}) + std::string(12, '\0'));
  static const TempFolder folder;
  using Kind = FeatureSource::Kind;
  for (const FeatureSource& source :
       {FeatureSource{"text", file.path(), {}, Kind::table},
        FeatureSource{"text", array.path(), file.path(), Kind::npy}}) {
    try {
      const FeatureInfo info = describe_feature(source);
      Json report;
      const Json entry = import_feature(source, folder.path(), info.ids, false, report);
      open_feature(folder.path(), "text", entry, info.ids, true);
    } catch (const InputError&) {
    }
    std::filesystem::remove(folder / "text_feat.npy");
    std::filesystem::remove(folder / "text_feat.ids");
  }
  return 0;
}
