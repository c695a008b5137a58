#include "cli/cli.h"

namespace tessera::cli {

void add_demo(CLI::App&, Common&) {}

}  // namespace tessera::cli
