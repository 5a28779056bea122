{{- define "reaper.image" -}}
{{ required "image.repository is required: build contrib/image/Dockerfile and push it" .Values.image.repository }}:{{ .Values.image.tag }}
{{- end }}

{{- define "reaper.labels" -}}
app.kubernetes.io/name: reaper
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
{{- end }}

{{- define "reaper.name" -}}
{{ .Release.Name | trunc 48 | trimSuffix "-" }}-install
{{- end }}

{{- define "reaper.exporter" -}}
{{ .Release.Name | trunc 48 | trimSuffix "-" }}-exporter
{{- end }}

{{- define "reaper.exporterLabels" -}}
app.kubernetes.io/name: reaper-exporter
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
{{- end }}
