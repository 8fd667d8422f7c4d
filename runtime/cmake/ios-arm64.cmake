# iOS on 64-bit Arm, on a Mac with Xcode:
#
#   cmake -S runtime -B build-ios -DCMAKE_TOOLCHAIN_FILE=$PWD/runtime/cmake/ios-arm64.cmake
#
# The simulator: -DQDEPLOY_IOS_SDK=iphonesimulator. An app links the static library, libqdeploy.a.
set(CMAKE_SYSTEM_NAME iOS)
set(CMAKE_SYSTEM_PROCESSOR arm64)
set(CMAKE_OSX_ARCHITECTURES arm64)
if(NOT QDEPLOY_IOS_SDK)
  set(QDEPLOY_IOS_SDK iphoneos)
endif()
set(CMAKE_OSX_SYSROOT ${QDEPLOY_IOS_SDK})
if(NOT CMAKE_OSX_DEPLOYMENT_TARGET)
  set(CMAKE_OSX_DEPLOYMENT_TARGET 14.0)
endif()
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES QDEPLOY_IOS_SDK)
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY) # a program would have to be signed
