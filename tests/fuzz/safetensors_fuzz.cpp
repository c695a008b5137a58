#include "tessera/base/error.h"
#include "tessera/data/feature.h"
#include "tessera/data/safetensors.h"
#include "tests/fuzz/memory_file.h"

// Tensor files, read and mapped as features: only InputError may escape.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using namespace tessera;
  try {
    parse_safetensors(as_text(bytes, size), "in memory");  // where a sanitizer sees the end
  } catch (const InputError&) {
  }
  const MemoryFile file(as_text(bytes, size));
  try {
    size_t total = 0;
    for (const auto& [name, tensor] : read_safetensors(file.path())) total += tensor.nbytes();
    if (total > size) __builtin_trap();
  } catch (const InputError&) {
  }
  try {
    const MappedArray array = map_safetensors(file.path());
    std::vector<float> row(static_cast<size_t>(array.width()));
    for (int64_t r = 0; r < array.n_rows() && r < 1000; ++r) array.read_row(r, row.data());
  } catch (const InputError&) {
  }
  return 0;
}
