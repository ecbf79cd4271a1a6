// cuDNN: convolutions through its graph interface, BatchNorm through the older one.

#include "null_cuda.h"

#include <cudnn.h>

#include <cstdlib>
#include <cstring>

using namespace null_cuda;

namespace {

constexpr size_t DESCRIPTOR_BYTES = 4096;  // more than any descriptor; only a handle's is read, which is its stream
constexpr size_t VERSION_SHOWN = 91900;
constexpr size_t CUDART_VERSION_SHOWN = 13000;

template <typename Descriptor>
cudnnStatus_t make(Descriptor* made) {
    *made = reinterpret_cast<Descriptor>(std::calloc(1, DESCRIPTOR_BYTES));
    return CUDNN_STATUS_SUCCESS;
}

template <typename Descriptor>
cudnnStatus_t drop(Descriptor gone) {
    std::free(gone);
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t no_bytes(size_t* num_bytes) {
    *num_bytes = 0;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t computed(const char* function) {
    count_launch(function);
    return CUDNN_STATUS_SUCCESS;
}

}  // namespace

extern "C" {

size_t cudnnGetVersion() { return VERSION_SHOWN; }

size_t cudnnGetCudartVersion() { return CUDART_VERSION_SHOWN; }

cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) {
    touch("cuDNN handle");
    return make(handle);
}

cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
    std::memcpy(handle, &stream, sizeof stream);
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnGetStream(cudnnHandle_t handle, cudaStream_t* stream) {
    std::memcpy(stream, handle, sizeof *stream);
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnCreateTensorDescriptor(cudnnTensorDescriptor_t* made) { return make(made); }

cudnnStatus_t cudnnDestroyTensorDescriptor(cudnnTensorDescriptor_t gone) { return drop(gone); }

// ---- convolutions: one engine without knobs or a workspace, found by every search

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t, cudnnBackendDescriptor_t* made) {
    return make(made);
}

cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t gone) { return drop(gone); }

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t, cudnnBackendAttributeName_t,
                                       cudnnBackendAttributeType_t, int64_t, const void*) {
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t) { return CUDNN_STATUS_SUCCESS; }

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t num_asked, int64_t* num_given,
                                       void* values) {
    const bool is_descriptor = type == CUDNN_TYPE_BACKEND_DESCRIPTOR && name != CUDNN_ATTR_ENGINECFG_KNOB_CHOICES;
    const bool is_number = type == CUDNN_TYPE_INT64 || type == CUDNN_TYPE_INT32;
    if (is_number && num_asked > 0 && values != nullptr) {
        std::memset(values, 0, type == CUDNN_TYPE_INT64 ? sizeof(int64_t) : sizeof(int32_t));
    }
    if (num_given != nullptr) *num_given = is_descriptor || is_number ? 1 : 0;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t, cudnnBackendDescriptor_t, cudnnBackendDescriptor_t) {
    return computed("cudnnBackendExecute");
}

// ---- BatchNorm

cudnnStatus_t cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
    cudnnHandle_t, cudnnBatchNormMode_t, cudnnBatchNormOps_t, const cudnnTensorDescriptor_t,
    const cudnnTensorDescriptor_t, const cudnnTensorDescriptor_t, const cudnnTensorDescriptor_t,
    const cudnnActivationDescriptor_t, size_t* num_bytes) {
    return no_bytes(num_bytes);
}

cudnnStatus_t cudnnGetBatchNormalizationBackwardExWorkspaceSize(
    cudnnHandle_t, cudnnBatchNormMode_t, cudnnBatchNormOps_t, const cudnnTensorDescriptor_t,
    const cudnnTensorDescriptor_t, const cudnnTensorDescriptor_t, const cudnnTensorDescriptor_t,
    const cudnnTensorDescriptor_t, const cudnnTensorDescriptor_t, const cudnnActivationDescriptor_t,
    size_t* num_bytes) {
    return no_bytes(num_bytes);
}

cudnnStatus_t cudnnGetBatchNormalizationTrainingExReserveSpaceSize(cudnnHandle_t, cudnnBatchNormMode_t,
                                                                   cudnnBatchNormOps_t,
                                                                   const cudnnActivationDescriptor_t,
                                                                   const cudnnTensorDescriptor_t, size_t* num_bytes) {
    return no_bytes(num_bytes);
}

cudnnStatus_t cudnnBatchNormalizationForwardTrainingEx(
    cudnnHandle_t, cudnnBatchNormMode_t, cudnnBatchNormOps_t, const void*, const void*, const cudnnTensorDescriptor_t,
    const void*, const cudnnTensorDescriptor_t, const void*, const cudnnTensorDescriptor_t, void*,
    const cudnnTensorDescriptor_t, const void*, const void*, double, void*, void*, double, void*, void*,
    cudnnActivationDescriptor_t, void*, size_t, void*, size_t) {
    return computed("cudnnBatchNormalizationForwardTrainingEx");
}

cudnnStatus_t cudnnBatchNormalizationBackwardEx(
    cudnnHandle_t, cudnnBatchNormMode_t, cudnnBatchNormOps_t, const void*, const void*, const void*, const void*,
    const cudnnTensorDescriptor_t, const void*, const cudnnTensorDescriptor_t, const void*,
    const cudnnTensorDescriptor_t, const void*, const cudnnTensorDescriptor_t, void*, const cudnnTensorDescriptor_t,
    void*, const cudnnTensorDescriptor_t, const void*, const void*, void*, void*, double, const void*, const void*,
    cudnnActivationDescriptor_t, void*, size_t, void*, size_t) {
    return computed("cudnnBatchNormalizationBackwardEx");
}

cudnnStatus_t cudnnBatchNormalizationForwardInference(cudnnHandle_t, cudnnBatchNormMode_t, const void*, const void*,
                                                      const cudnnTensorDescriptor_t, const void*,
                                                      const cudnnTensorDescriptor_t, void*,
                                                      const cudnnTensorDescriptor_t, const void*, const void*,
                                                      const void*, const void*, double) {
    return computed("cudnnBatchNormalizationForwardInference");
}

}  // extern "C"
