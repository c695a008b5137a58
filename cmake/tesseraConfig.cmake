# find_package(tessera): the target tessera::tessera. torch and pyarrow must be findable as when it was
# built: -DCMAKE_PREFIX_PATH=<torch.utils.cmake_prefix_path>, and Arrow_ROOT or a Python with pyarrow.
include(CMakeFindDependencyMacro)
list(APPEND CMAKE_MODULE_PATH ${CMAKE_CURRENT_LIST_DIR})
find_package(Python3 COMPONENTS Interpreter QUIET)
find_dependency(Torch)
find_dependency(Arrow)
find_dependency(nlohmann_json)
include(${CMAKE_CURRENT_LIST_DIR}/tesseraTargets.cmake)
