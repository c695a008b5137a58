#include "tessera/base/error.h"
#include "tessera/data/feature.h"
#include "tessera/data/npy.h"
#include "tests/fuzz/memory_file.h"

// Arrays, mapped and read: only InputError may escape; what is read can be written and read alike.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using namespace tessera;
  try {
    parse_npy(as_text(bytes, size), "in memory");  // where a sanitizer sees the end of the bytes
  } catch (const InputError&) {
  }
  const MemoryFile file(as_text(bytes, size));
  try {
    const MappedArray array = map_npy(file.path());
    std::vector<float> row(static_cast<size_t>(array.width()));
    for (int64_t r = 0; r < array.n_rows(); ++r) array.read_row(r, row.data());
  } catch (const InputError&) {
  }
  try {
    const torch::Tensor tensor = read_npy(file.path());
    const std::string head = npy_head(tensor.scalar_type(), tensor.sizes().vec());
    const std::string again =
        head + std::string(static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes());
    if (parse_npy(again, "again").shape != tensor.sizes().vec()) __builtin_trap();
  } catch (const InputError&) {
  }
  return 0;
}
