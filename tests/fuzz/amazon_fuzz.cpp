#include "tessera/base/error.h"
#include "tessera/folder/manifest.h"
#include "tests/fuzz/memory_file.h"
#include "tests/unit/temp_folder.h"

// The Amazon image-feature binary. Fourteen bytes of input (an id, a number) stand for one record,
// the number repeated 4,096 times; what is left over ends the file early.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using namespace tessera;
  constexpr size_t kRecord = 14, kMaxRecords = 16;
  std::string_view text = as_text(bytes, size);
  std::string file;
  for (size_t n = 0; text.size() >= kRecord && n < kMaxRecords; ++n) {
    file += text.substr(0, 10);
    for (int k = 0; k < 4096; ++k) file += text.substr(10, 4);
    text.remove_prefix(kRecord);
  }
  file += text.substr(0, kRecord - 1);
  const MemoryFile memory(file);
  static const TempFolder folder;
  const FeatureSource source{"image", memory.path(), {}, FeatureSource::Kind::amazon};
  try {
    const FeatureInfo info = describe_feature(source);
    Json report;
    const Json entry = import_feature(source, folder.path(), info.ids, false, report);
    open_feature(folder.path(), "image", entry, info.ids, true);
  } catch (const InputError&) {
  }
  std::filesystem::remove(folder / "image_feat.npy");
  std::filesystem::remove(folder / "image_feat.ids");
  return 0;
}
