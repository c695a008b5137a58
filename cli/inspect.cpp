#include "cli/cli.h"

namespace tessera::cli {

void add_inspect(CLI::App&, Common&) {}

}  // namespace tessera::cli
