#include "cli/cli.h"

namespace tessera::cli {

void add_similar(CLI::App&, Common&) {}

}  // namespace tessera::cli
