#pragma once

#include <cstdint>
#include <filesystem>

namespace tessera {

/// Writes the built-in shop's source files into `folder` (written beside and exchanged; what was
/// there is replaced): items.jsonl, images/<item>.png, events.tsv, image_feat.npy and text_feat.npy
/// with their .ids, README.txt. Everything is made up from `seed`: the same seed gives the same
/// bytes on every machine.
void make_shop(const std::filesystem::path& folder, uint64_t seed);

}  // namespace tessera
