# Arrow and Parquet from the headers and libraries inside PyPI's pyarrow, or from Arrow_ROOT.
if(NOT Arrow_ROOT)
  execute_process(COMMAND ${Python3_EXECUTABLE} -c "import pyarrow; print(pyarrow.__path__[0])"
                  OUTPUT_VARIABLE Arrow_ROOT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
find_path(Arrow_INCLUDE_DIR arrow/api.h PATHS ${Arrow_ROOT}/include NO_DEFAULT_PATH)
file(GLOB Arrow_LIBRARY ${Arrow_ROOT}/libarrow.so*)
file(GLOB Parquet_LIBRARY ${Arrow_ROOT}/libparquet.so*)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Arrow REQUIRED_VARS Arrow_INCLUDE_DIR Arrow_LIBRARY Parquet_LIBRARY)
if(Arrow_FOUND AND NOT TARGET Arrow::parquet)
  list(GET Arrow_LIBRARY 0 Arrow_LIBRARY)
  list(GET Parquet_LIBRARY 0 Parquet_LIBRARY)
  add_library(Arrow::arrow SHARED IMPORTED)
  set_target_properties(Arrow::arrow PROPERTIES IMPORTED_LOCATION ${Arrow_LIBRARY}
                        INTERFACE_INCLUDE_DIRECTORIES ${Arrow_INCLUDE_DIR})
  add_library(Arrow::parquet SHARED IMPORTED)
  set_target_properties(Arrow::parquet PROPERTIES IMPORTED_LOCATION ${Parquet_LIBRARY}
                        INTERFACE_LINK_LIBRARIES Arrow::arrow)
endif()
