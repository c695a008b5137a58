// Any bytes under the name "sequences.txt": only InputError may escape.
#include <cstdint>
#include <string>

#include "tests/fuzz/read_anything.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  tessera::read_anything("sequences.txt", std::string(reinterpret_cast<const char*>(data), size));
  return 0;
}
