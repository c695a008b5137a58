#include <fstream>
#include <string>
#include <string_view>

#include "tessera/base/error.h"
#include "tessera/folder/load.h"
#include "tests/unit/temp_folder.h"

// A dataset folder with one file replaced by the input; its first byte says which.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using namespace tessera;
  if (size == 0) return 0;
  static const TempFolder folder;
  struct File {
    const char* name;
    const char* bytes;
  };
  static constexpr File kFiles[] = {
      {"interactions.tsv", "user_id\titem_id\ttimestamp\tsplit\na\tx\t1\ttrain\nb\ty\t2\ttest\n"},
      {"dataset.json",
       "{\"name\":\"d\",\"n_users\":2,\"n_items\":2,\"n_interactions\":2,\"n_seen\":0,"
       "\"split\":{\"kind\":\"given\"},\"train_sha256\":\"0\"}"},
      {"user_map.tsv", "raw_id\tindex\na\t0\nb\t1\n"},
      {"item_map.tsv", "raw_id\tindex\nx\t0\ny\t1\n"},
      {"items.tsv", "item_id\ttitle\nx\tAxe\n"},
  };
  const size_t chosen = bytes[0] % std::size(kFiles);
  for (size_t f = 0; f < std::size(kFiles); ++f) {
    const std::string_view content =
        f == chosen ? std::string_view(reinterpret_cast<const char*>(bytes) + 1, size - 1)
                    : std::string_view(kFiles[f].bytes);
    std::ofstream out(folder / kFiles[f].name, std::ios::binary | std::ios::trunc);
    out.write(content.data(), static_cast<std::streamsize>(content.size()));
  }
  try {
    load_dataset(folder.path());
  } catch (const InputError&) {
  }
  try {
    DatasetView fold;
    fold.fold = 1;
    load_dataset(folder.path(), fold);
  } catch (const InputError&) {
  }
  return 0;
}
