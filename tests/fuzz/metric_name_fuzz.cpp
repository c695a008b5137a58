#include <cstdint>
#include <string>

#include "tessera/base/error.h"
#include "tessera/eval/evaluate.h"

// Names of metrics and protocols as typed: only InputError may escape; a canonical name is its own.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using namespace tessera;
  const std::string typed(reinterpret_cast<const char*>(bytes), size);
  try {
    const std::string name = canonical_metric(typed);
    if (canonical_metric(name) != name) __builtin_trap();
  } catch (const InputError&) {
  }
  try {
    find_protocol(typed);
  } catch (const InputError&) {
  }
  return 0;
}
