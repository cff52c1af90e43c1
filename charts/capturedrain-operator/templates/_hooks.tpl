{{/* Pods that Helm starts are no operators: neither the Service nor the budget may find them. */}}
{{- define "operator.hookLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ include "operator.name" .root }}-{{ .hook }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: capturedrain
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end }}

{{/* What has to be there before the pod runs has a lower weight. */}}
{{- define "operator.hookAnnotations" -}}
helm.sh/hook: {{ .on }}
helm.sh/hook-weight: {{ .weight | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{- define "operator.hookSubject" -}}
- kind: ServiceAccount
  name: {{ include "operator.fullname" .root }}-{{ .hook }}
  namespace: {{ .root.Release.Namespace }}
{{- end }}

{{/* What the pod of a hook has besides its command. */}}
{{- define "operator.hookPod" -}}
serviceAccountName: {{ include "operator.fullname" .root }}-{{ .hook }}
enableServiceLinks: false
restartPolicy: Never
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- with .root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "operator.hookContainer" -}}
image: {{ .Values.image.repository }}
  {{- if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ default .Chart.AppVersion .Values.image.tag }}{{ end }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
resources:
  requests: {cpu: 10m, memory: 32Mi}
  limits: {memory: 128Mi}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/* The name of the webhook's configuration; empty without a webhook. */}}
{{- define "operator.webhookConfiguration" -}}
{{- if .Values.webhook.enabled }}
{{- include "operator.webhookName" . }}
{{- end }}
{{- end }}
