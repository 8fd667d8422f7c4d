# Android on 64-bit Arm, with the toolchain that the NDK brings:
#
#   cmake -S runtime -B build-android -DCMAKE_TOOLCHAIN_FILE=$PWD/runtime/cmake/android-arm64.cmake
#
# The NDK is where ANDROID_NDK says (a CMake variable), or the environment's ANDROID_NDK_HOME or ANDROID_NDK_ROOT.
# All kernels of the machine are chosen at run time, so one build serves every arm64-v8a device.
foreach(place "${ANDROID_NDK}" "$ENV{ANDROID_NDK_HOME}" "$ENV{ANDROID_NDK_ROOT}")
  if(place AND NOT QDEPLOY_NDK AND EXISTS "${place}/build/cmake/android.toolchain.cmake")
    set(QDEPLOY_NDK "${place}")
  endif()
endforeach()
if(NOT QDEPLOY_NDK)
  message(FATAL_ERROR "no Android NDK: set ANDROID_NDK to its folder (the one with build/cmake/android.toolchain.cmake)")
endif()
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ANDROID_NDK ANDROID_PLATFORM)

if(NOT ANDROID_ABI)
  set(ANDROID_ABI arm64-v8a)
endif()
if(NOT ANDROID_PLATFORM)
  set(ANDROID_PLATFORM android-26)
endif()
set(ANDROID_STL c++_static) # an app with other C++ libraries uses c++_shared; nothing of C++ crosses the surface
set(ANDROID_CPP_FEATURES "") # neither exceptions nor run-time types
include("${QDEPLOY_NDK}/build/cmake/android.toolchain.cmake")
