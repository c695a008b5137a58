#include "cli/cli.h"

namespace tessera::cli {

void add_import(CLI::App&, Common&) {}

}  // namespace tessera::cli
