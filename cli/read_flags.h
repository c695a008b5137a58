#pragma once

#include "cli/cli.h"
#include "tessera/read/readers.h"

namespace tessera::cli {

/// The flags by which a user corrects what detection says of raw files.
void add_read_flags(CLI::App& verb, ReadOptions& options);

}  // namespace tessera::cli
